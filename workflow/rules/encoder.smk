# Encoder pretraining, in parts. How many there are is known only at run time: part i exists if part i-1 ended by CKA.
# The kinds of pretraining (wildcard objective) differ in labels and head alone.
UNITS = "results/text/units/tokenizer.json"
LABELS = {"phoneme": "results/text/phonemes/tokens.txt", "character": UNITS, "attention": UNITS}


def previous_part(wildcards):
    part = int(wildcards.part)
    return f"results/encoders/{wildcards.objective}/seed-{wildcards.seed}/part-{part - 1}/training_state.safetensors" if part else []


def parts(seed, objective):
    """part.json of every part of a pretraining; asks the checkpoints in turn."""
    found = []
    while not found or read_part(found[-1])["ended_by"] != "last_step":
        found.append(checkpoints.pretrain_part.get(objective=objective, seed=seed, part=len(found)).output.part)
    return found


def read_part(path):
    import json

    return json.loads(Path(path).read_text())


def cpus_of_part(wildcards):
    return CONFIG.resources.pretrain_cpus(int(wildcards.part), CONFIG.cka.max_parts)


def final_encoder(seed, objective):
    return parts(seed, objective)[-1].replace("part.json", "encoder.safetensors")


checkpoint pretrain_part:
    input:
        config=lambda wildcards: f"results/config/pretrain{'_attention' if wildcards.objective == 'attention' else ''}.json",
        train=TRAINED_ON,
        dev=DEV,
        labels=lambda wildcards: LABELS[wildcards.objective],
        stats="results/features/stats.json",
        previous=previous_part,
    output:
        encoder="results/encoders/{objective}/seed-{seed}/part-{part}/encoder.safetensors",
        state="results/encoders/{objective}/seed-{seed}/part-{part}/training_state.safetensors",
        part="results/encoders/{objective}/seed-{seed}/part-{part}/part.json",
        curve="results/encoders/{objective}/seed-{seed}/part-{part}/train.jsonl",
        provenance="results/encoders/{objective}/seed-{seed}/part-{part}/provenance.json",
    params:
        out=subpath(output.encoder, parent=True),
        running="results/state/encoders/{objective}/seed-{seed}/part-{part}",
        previous=lambda wildcards, input: f"--previous {input.previous}" if input.previous else "",
    log:
        "results/logs/pretrain/{objective}/seed-{seed}/part-{part}.log",
    benchmark:
        "results/benchmarks/pretrain/{objective}/seed-{seed}/part-{part}.tsv"
    # All else waits for the only pretraining. Several would take all cores of a small machine, so the LLM side (12) goes before them.
    priority: 14 if len(OBJECTIVES) * len(SEEDS) == 1 else 10
    threads: cpus_of_part
    resources:
        **(RESOURCES["pretrain"] | {"cpus_per_task": cpus_of_part}),
    shell:
        RECORD + "{LAUNCH[pretrain]} entropy_asr.stages.pretrain --config {input.config} $(printf -- '--train %s ' {input.train})"
        " $(printf -- '--dev %s ' {input.dev}) --objective {wildcards.objective} --labels {input.labels} --stats {input.stats} --part {wildcards.part}"
        " --seed {wildcards.seed} {params.previous} --running {params.running} --out {params.out} 2>&1 | tee {log}"
