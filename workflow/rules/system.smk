# The speech-LLM of each arm: alignment, IA-SFT iterations beside pretraining, joint SFT.
SYSTEM = "results/systems/{arm}/seed-{seed}"


def lm_of(wildcards):
    return f"results/text/{CONFIG.lm_of(wildcards.arm)}/lm.json"


def encoder_of(wildcards):
    """The final encoder of the pretraining that an arm starts from."""
    return final_encoder(wildcards.seed, CONFIG.recipe(wildcards.arm).objective)


def encoder_to_align(wildcards):
    """With IA-SFT alignment starts as soon as part 0 is there; without, it waits for the last part."""
    return part_of(wildcards, 0, "encoder.safetensors") if CONFIG.recipe(wildcards.arm).ia_sft else encoder_of(wildcards)


def part_of(wildcards, part, name):
    return f"results/encoders/{CONFIG.recipe(wildcards.arm).objective}/seed-{wildcards.seed}/part-{part}/{name}"


def before_iteration(wildcards):
    """Where iteration i goes on from: the alignment, or iteration i-1."""
    iteration = int(wildcards.iteration)
    before = f"ia_sft/iter-{iteration - 1}" if iteration else "align"
    return f"results/systems/{wildcards.arm}/seed-{wildcards.seed}/{before}/model.safetensors"


def iteration_if_any(wildcards):
    """Iteration i where pretraining has a part i, else nothing; and the parts that say so. Asks only the checkpoints before it,
    so that iteration 0 is in the plan while part 1 trains; asking for the last part at once would keep it out until pretraining
    has ended."""
    asked = []
    for part in range(int(wildcards.iteration) + 1):
        objective = CONFIG.recipe(wildcards.arm).objective
        asked.append(checkpoints.pretrain_part.get(objective=objective, seed=wildcards.seed, part=part).output.part)
        if read_part(asked[-1])["ended_by"] == "last_step" and part < int(wildcards.iteration):
            return {"parts": asked}
    return {"parts": asked, "model": expand(SYSTEM + "/ia_sft/iter-{iteration}/model.safetensors", **wildcards)}


def before_joint(wildcards):
    """What joint SFT goes on from."""
    recipe = CONFIG.recipe(wildcards.arm)
    system = SYSTEM.format(arm=recipe.shares or wildcards.arm, seed=wildcards.seed)
    if recipe.ia_sft:
        return {"gates": expand(system + "/ia_sft/gate-{iteration}.json", iteration=range(CONFIG.cka.max_parts))}
    return {"previous": [f"{system}/align/model.safetensors"]} if recipe.align else {}


rule align:
    input:
        config="results/config/align.json",
        arm="results/config/arm.{arm}.json",
        train=TRAINED_ON,
        dev=DEV,
        encoder=encoder_to_align,
        lm=lm_of,
    output:
        model=SYSTEM + "/align/model.safetensors",
        curve=SYSTEM + "/align/train.jsonl",
        provenance=SYSTEM + "/align/provenance.json",
    params:
        out=subpath(output.model, parent=True),
        running="results/state/systems/{arm}/seed-{seed}/align",
    log:
        "results/logs/align/{arm}/seed-{seed}.log",
    benchmark:
        "results/benchmarks/align/{arm}/seed-{seed}.tsv"
    priority: 12  # after an only pretraining, before several: see pretrain_part
    threads: CONFIG.resources.cpus
    resources:
        **RESOURCES["align"],
    shell:
        RECORD + "{LAUNCH[align]} entropy_asr.stages.align --config {input.config} $(printf -- '--train %s ' {input.train})"
        " $(printf -- '--dev %s ' {input.dev}) --encoder {input.encoder}"
        " --lm $(dirname {input.lm}) --seed {wildcards.seed} --running {params.running} --out {params.out} 2>&1 | tee {log}"


rule ia_sft_iteration:
    input:
        config="results/config/ia_sft.json",
        arm="results/config/arm.{arm}.json",
        train=TRAINED_ON,
        dev=DEV,
        encoder=lambda wildcards: part_of(wildcards, wildcards.iteration, "encoder.safetensors"),
        part=lambda wildcards: part_of(wildcards, wildcards.iteration, "part.json"),
        previous=before_iteration,
        lm=lm_of,
    output:
        model=SYSTEM + "/ia_sft/iter-{iteration}/model.safetensors",
        curve=SYSTEM + "/ia_sft/iter-{iteration}/train.jsonl",
        provenance=SYSTEM + "/ia_sft/iter-{iteration}/provenance.json",
    params:
        out=subpath(output.model, parent=True),
        running="results/state/systems/{arm}/seed-{seed}/ia_sft/iter-{iteration}",
    log:
        "results/logs/ia_sft/{arm}/seed-{seed}/iter-{iteration}.log",
    benchmark:
        "results/benchmarks/ia_sft/{arm}/seed-{seed}/iter-{iteration}.tsv"
    priority: 12
    threads: CONFIG.resources.cpus
    resources:
        **RESOURCES["ia_sft"],
    shell:
        RECORD + "{LAUNCH[ia_sft]} entropy_asr.stages.ia_sft --config {input.config} $(printf -- '--train %s ' {input.train})"
        " $(printf -- '--dev %s ' {input.dev}) --encoder {input.encoder}"
        " --part {input.part} --previous $(dirname {input.previous}) --lm $(dirname {input.lm}) --iteration {wildcards.iteration} --seed {wildcards.seed}"
        " --running {params.running} --out {params.out} 2>&1 | tee {log}"


rule ia_sft_gate:
    # Names iteration i and the hash of its model, or nothing if pretraining ended before part i: joint SFT waits for all gates.
    input:
        unpack(iteration_if_any),
    output:
        SYSTEM + "/ia_sft/gate-{iteration}.json",
    params:
        model=lambda wildcards, input: f"--model {input.model}" if "model" in input.keys() else "",
    log:
        "results/logs/ia_sft_gate/{arm}/seed-{seed}/{iteration}.log",
    localrule: True
    priority: 50  # joint SFT could not go before what matters less
    shell:
        RECORD + "python -m entropy_asr.stages.ia_sft_gate {params.model} --out {output} 2>&1 | tee {log}"


rule joint_sft:
    input:
        unpack(before_joint),
        config=lambda wildcards: f"results/config/joint_sft{'' if CONFIG.recipe(wildcards.arm).align else '_alone'}.json",
        arm="results/config/arm.{arm}.json",
        train=TRAINED_ON,
        dev=DEV,
        encoder=encoder_of,
        lm=lm_of,
    output:
        model=SYSTEM + "/joint_sft/model.safetensors",
        tokenizer=SYSTEM + "/joint_sft/tokenizer/tokenizer.json",
        curve=SYSTEM + "/joint_sft/train.jsonl",
        provenance=SYSTEM + "/joint_sft/provenance.json",
    params:
        out=subpath(output.model, parent=True),
        running="results/state/systems/{arm}/seed-{seed}/joint_sft",
        start=lambda wildcards, input: " ".join(
            [f"--gates {gate}" for gate in input.get("gates", [])]
            + [f"--previous {os.path.dirname(model)}" for model in input.get("previous", [])]
            + ([] if CONFIG.recipe(wildcards.arm).train_encoder else ["--freeze-encoder"])
        ),
    log:
        "results/logs/joint_sft/{arm}/seed-{seed}.log",
    benchmark:
        "results/benchmarks/joint_sft/{arm}/seed-{seed}.tsv"
    priority: 8
    threads: CONFIG.resources.cpus
    resources:
        **RESOURCES["joint_sft"],
    shell:
        RECORD + "{LAUNCH[joint_sft]} entropy_asr.stages.joint_sft --config {input.config} $(printf -- '--train %s ' {input.train})"
        " $(printf -- '--dev %s ' {input.dev}) --encoder {input.encoder}"
        " {params.start} --lm $(dirname {input.lm}) --seed {wildcards.seed} --running {params.running} --out {params.out} 2>&1 | tee {log}"
