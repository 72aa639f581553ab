# Decoding and scoring. Raw hypotheses are kept; a score can be made again without decoding.


def test_manifest(wildcards):
    return manifest(CONFIG.data.test[wildcards.testset].split)


rule decode:
    input:
        config="results/config/decode.json",
        cuts=test_manifest,
        model=SYSTEM + "/joint_sft/model.safetensors",
        tokenizer=SYSTEM + "/joint_sft/tokenizer/tokenizer.json",
    output:
        "results/decode/{arm}/seed-{seed}/{testset}.jsonl",
    log:
        "results/logs/decode/{arm}/seed-{seed}/{testset}.log",
    threads: 1
    shell:
        "python -m entropy_asr.evaluation.decode --config {input.config} --cuts {input.cuts} --system $(dirname {input.model})"
        " --out {output} 2>&1 | tee {log}"


rule decode_phonemes:
    input:
        config="results/config/decode.json",
        cuts=test_manifest,
        encoder=final_encoder,
    output:
        "results/decode/encoder/seed-{seed}/{testset}.jsonl",
    log:
        "results/logs/decode_phonemes/seed-{seed}/{testset}.log",
    threads: 1
    shell:
        "python -m entropy_asr.evaluation.decode_phonemes --config {input.config} --cuts {input.cuts} --encoder {input.encoder}"
        " --out {output} 2>&1 | tee {log}"


rule significance:
    # Paired tests of each arm against `ours`, from the stored hypotheses.
    input:
        expand("results/decode/{arm}/seed-{seed}/{testset}.jsonl", arm=ARMS, seed=SEEDS, testset=TESTS),
    output:
        "results/tables/significance.csv",
    params:
        baseline=REPORTED,
    log:
        "results/logs/significance.log",
    shell:
        "python -m entropy_asr.evaluation.significance $(printf -- '--hyps %s ' {input}) --baseline {params.baseline}"
        " --out {output} 2>&1 | tee {log}"


rule score:
    input:
        "results/decode/{system}/seed-{seed}/{testset}.jsonl",
    output:
        score="results/metrics/score/{system}/seed-{seed}/{testset}.json",
        errors="results/metrics/score/{system}/seed-{seed}/{testset}.errors.txt",
    log:
        "results/logs/score/{system}/seed-{seed}/{testset}.log",
    shell:
        "python -m entropy_asr.evaluation.score --hyps {input} --out {output.score} --errors {output.errors} 2>&1 | tee {log}"
