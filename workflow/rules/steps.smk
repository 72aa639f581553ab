# One target a step of the recipe: `snakemake … step_align` makes all alignments and what they need. dvc.yaml calls these.


def every(stage, name, arms=ARMS):
    return expand(SYSTEM + "/{stage}/{name}", arm=arms, seed=SEEDS, stage=stage, name=name)


rule step_data:
    input:
        [manifest(split) for split in SPLITS],
        "results/features/stats.json",
        list(dict.fromkeys(LABELS[objective] for objective in ["phoneme", *OBJECTIVES])),
    localrule: True


rule step_lm:
    input:
        expand("results/text/{lm}/lm.json", lm=CONFIG.llms),
    localrule: True


rule step_pretrain:
    input:
        every_part,
        lambda wildcards: parts(SEEDS[0], "phoneme"),  # the aligner, whatever the arms start from
    localrule: True


rule step_align:
    input:
        every("align", "model.safetensors", CONFIG.arms_with("align")),
    localrule: True


rule step_ia_sft:
    input:
        every("ia_sft", [f"gate-{i}.json" for i in range(CONFIG.cka.max_parts)], CONFIG.arms_with("ia_sft")),
    localrule: True


rule step_joint_sft:
    input:
        every("joint_sft", "model.safetensors"),
    localrule: True


rule step_decode:
    input:
        expand("results/decode/{system}/seed-{seed}/{testset}.jsonl", system=[*ARMS, *HEARD], seed=SEEDS, testset=TESTS),
        expand("results/decode/{arm}/seed-{seed}/conditions/{testset}.jsonl", arm=ARMS, seed=SEEDS, testset=TESTS),
        of_peers("results/decode/peers/{peer}/{testset}.jsonl"),
    localrule: True


rule step_score:
    input:
        SCORES,
    localrule: True


rule step_metrics:
    input:
        lambda wildcards: [path for seed in SEEDS for path in encoders_of(seed, "json")],
        expand("results/metrics/system/{arm}/seed-{seed}.json", arm=ARMS, seed=SEEDS),
        expand("results/metrics/drift/seed-{seed}.json", seed=SEEDS),
        peer_encoders(),
    localrule: True


rule step_report:
    input:
        "results/tables/main.csv",
        "results/tables/main.md",
        "results/report/index.html",
        "results/tables/summary.json",
    localrule: True


rule metrics_summary:
    # The main table as nested JSON: what `dvc metrics` reads.
    input:
        config="results/config/report.json",
        main="results/tables/main.csv",
    output:
        "results/tables/summary.json",
    log:
        "results/logs/metrics_summary.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.summary --main {input.main} --out {output} 2>&1 | tee {log}"
