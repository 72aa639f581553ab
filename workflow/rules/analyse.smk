# Who removes how much of the uncertainty: the reference alignment, NSE, PAI and CSAI of every encoder, drift between encoders,
# EER, LER and AR of every system; one table of them all, and its figures.
EVALUATED = list(dict.fromkeys([*TRAIN, *DEV, *(manifest(test.split) for test in CONFIG.data.test.values())]))
ENTROPY_FIGURES = ["shift", "drift", "spectrum", "allocation"]

wildcard_constraints:
    owner="|".join([*OBJECTIVES, *ARMS]),
    encoder=r"part-\d+|joint_sft",


def measured_encoder(wildcards):
    """A pretraining part; or the encoder inside a finished system."""
    if wildcards.owner in OBJECTIVES:
        return f"results/encoders/{wildcards.owner}/seed-{wildcards.seed}/{wildcards.encoder}/encoder.safetensors"
    return f"results/systems/{wildcards.owner}/seed-{wildcards.seed}/{wildcards.encoder}/model.safetensors"


def encoders_of(seed, suffix):
    """Files about every encoder of a seed, in the order of training."""
    pretraining = [f"{kind}/seed-{seed}/part-{part}" for kind in OBJECTIVES for part in range(len(parts(seed, kind)))]
    return [f"results/metrics/encoder/{name}.{suffix}" for name in [*pretraining, *(f"{arm}/seed-{seed}/joint_sft" for arm in ARMS)]]


def peer_encoders():
    """Metrics of the peers whose encoder the config has measured."""
    return [f"results/metrics/encoder/peers/{name}.json" for name, peer in PEERS.items() if peer.encoder_metrics]


rule alignment:
    # One aligner for all, also where no arm starts from it: the final phoneme encoder of the first seed.
    input:
        config="results/config/metrics.json",
        encoder=lambda wildcards: final_encoder(SEEDS[0], "phoneme"),
        fit=TRAIN,
        held_out=DEV,
        test=list(dict.fromkeys(manifest(test.split) for test in CONFIG.data.test.values())),
    output:
        expand("results/metrics/alignment/{name}", name=["fit.jsonl.gz", "held_out.jsonl.gz", "test.jsonl.gz", "quality.json"]),
    params:
        out=subpath(output[0], parent=True),
    log:
        "results/logs/alignment.log",
    threads: 1
    resources:
        **RESOURCES["metrics"],
    shell:
        RECORD + "{LAUNCH[metrics]} entropy_asr.analysis.alignment --config {input.config} --encoder {input.encoder} $(printf -- '--fit %s ' {input.fit})"
        " $(printf -- '--held-out %s ' {input.held_out}) $(printf -- '--test %s ' {input.test}) --out {params.out} 2>&1 | tee {log}"


rule encoder_metrics:
    input:
        config="results/config/metrics.json",
        encoder=measured_encoder,
        manifests=EVALUATED,
        alignment=rules.alignment.output,
    output:
        metrics="results/metrics/encoder/{owner}/seed-{seed}/{encoder}.json",
        frames="results/metrics/encoder/{owner}/seed-{seed}/{encoder}.safetensors",
    log:
        "results/logs/encoder_metrics/{owner}/seed-{seed}/{encoder}.log",
    benchmark:
        "results/benchmarks/encoder_metrics/{owner}/seed-{seed}/{encoder}.tsv"
    threads: 1
    resources:
        **RESOURCES["metrics"],
    shell:
        RECORD + "{LAUNCH[metrics]} entropy_asr.analysis.encoder_metrics --config {input.config} --encoder {input.encoder}"
        " $(printf -- '--manifests %s ' {input.manifests}) --alignment $(dirname {input.alignment[0]})"
        " --out {output.metrics} --frames {output.frames} 2>&1 | tee {log}"


rule peer_encoder_metrics:
    # The encoder of another recogniser, asked the same of the same utterances.
    input:
        config="results/config/metrics.json",
        peer="results/config/peer.{peer}.json",
        source=peer_source,
        manifests=EVALUATED,
        alignment=rules.alignment.output,
    output:
        "results/metrics/encoder/peers/{peer}.json",
    params:
        path=peer_path,
        window=lambda wildcards: PEERS[wildcards.peer].window,
    log:
        "results/logs/encoder_metrics/peers/{peer}.log",
    benchmark:
        "results/benchmarks/encoder_metrics/peers/{peer}.tsv"
    threads: 1
    resources:
        **RESOURCES["metrics"],
    shell:
        RECORD + "{LAUNCH[metrics]} entropy_asr.analysis.encoder_metrics --config {input.config} --encoder {params.path} --window {params.window}"
        " --output-alone $(printf -- '--manifests %s ' {input.manifests}) --alignment $(dirname {input.alignment[0]})"
        " --out {output} 2>&1 | tee {log}"


rule system_metrics:
    input:
        config="results/config/metrics.json",
        arm="results/config/arm.{arm}.json",
        model=SYSTEM + "/joint_sft/model.safetensors",
        lm=lm_of,
        manifests=EVALUATED,
        alignment=rules.alignment.output,
    output:
        "results/metrics/system/{arm}/seed-{seed}.json",
    log:
        "results/logs/system_metrics/{arm}/seed-{seed}.log",
    benchmark:
        "results/benchmarks/system_metrics/{arm}/seed-{seed}.tsv"
    threads: 1
    resources:
        **RESOURCES["metrics"],
    shell:
        RECORD + "{LAUNCH[metrics]} entropy_asr.analysis.system_metrics --config {input.config} --system $(dirname {input.model})"
        " --lm $(dirname {input.lm}) $(printf -- '--manifests %s ' {input.manifests})"
        " --alignment $(dirname {input.alignment[0]}) --out {output} 2>&1 | tee {log}"


rule drift:
    input:
        config="results/config/metrics.json",
        report="results/config/report.json",  # which arms there are
        frames=lambda wildcards: encoders_of(wildcards.seed, "safetensors"),
    output:
        "results/metrics/drift/seed-{seed}.json",
    log:
        "results/logs/drift/seed-{seed}.log",
    threads: 1
    shell:
        RECORD + "python -m entropy_asr.analysis.drift $(printf -- '--frames %s ' {input.frames}) --out {output} 2>&1 | tee {log}"


rule table_entropy:
    input:
        config="results/config/report.json",
        encoders=lambda wildcards: [path for seed in SEEDS for path in encoders_of(seed, "json")],
        systems=expand("results/metrics/system/{arm}/seed-{seed}.json", arm=ARMS, seed=SEEDS),
        drift=expand("results/metrics/drift/seed-{seed}.json", seed=SEEDS),
        peers=peer_encoders(),
    output:
        entropy=report("results/tables/entropy.csv", category="Tables", caption="../report/table.rst"),
        spectrum="results/tables/spectrum.csv",
    params:
        start=" ".join(f"--start {arm}={CONFIG.recipe(arm).objective}" for arm in ARMS),
    log:
        "results/logs/table_entropy.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.entropy table $(printf -- '--encoders %s ' {input.encoders} {input.peers})"
        " $(printf -- '--systems %s ' {input.systems}) $(printf -- '--drift %s ' {input.drift})"
        " {params.start} --out {output.entropy} --spectrum {output.spectrum} 2>&1 | tee {log}"


rule figures_entropy:
    input:
        config="results/config/report.json",
        entropy="results/tables/entropy.csv",
        spectrum="results/tables/spectrum.csv",
    output:
        report(expand("results/figures/{name}.svg", name=ENTROPY_FIGURES), category="Figures", caption="../report/figure.rst"),
        expand("results/figures/{name}.png", name=ENTROPY_FIGURES),
    params:
        out=subpath(output[0], parent=True),
    log:
        "results/logs/figures_entropy.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.entropy figures --entropy {input.entropy} --spectrum {input.spectrum}"
        " --out {params.out} 2>&1 | tee {log}"


rule metric_validation:
    # Not part of `all`: `snakemake … results/tables/metric_validation.csv`.
    input:
        report="results/config/report.json",
        config="results/config/metrics.json",
        encoder=lambda wildcards: final_encoder(SEEDS[0], "phoneme"),
        system=f"results/systems/{REPORTED}/seed-{SEEDS[0]}/joint_sft/model.safetensors",
        lm=f"results/text/{CONFIG.lm_of(REPORTED)}/lm.json",
        manifests=EVALUATED,
        alignment=rules.alignment.output,
    output:
        "results/tables/metric_validation.csv",
    log:
        "results/logs/metric_validation.log",
    threads: 1
    resources:
        **RESOURCES["metrics"],
    shell:
        RECORD + "{LAUNCH[metrics]} entropy_asr.analysis.validation --config {input.config} --encoder {input.encoder}"
        " $(printf -- '--manifests %s ' {input.manifests}) --alignment $(dirname {input.alignment[0]})"
        " --system $(dirname {input.system}) --lm $(dirname {input.lm}) --out {output} 2>&1 | tee {log}"
