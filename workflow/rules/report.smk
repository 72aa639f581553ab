# Tables, figures and the report. main.csv needs scores and provenance only; all else is drawn from tables.
SPLITS = [*CONFIG.data.train, *CONFIG.data.dev, *dict.fromkeys(test.split for test in CONFIG.data.test.values())]


def is_synthetic(split):
    corpus = CONFIG.data.corpora[split.split("/")[0]]
    return corpus.synthetic or corpus.kind == "embedded"


def of_each_job(name):
    """A file of every training job; asks the checkpoints how many parts, and so IA-SFT iterations, there are."""

    def files(wildcards):
        found = [f"results/text/{folder}/{name}" for folder, llm in CONFIG.llms.items() if not llm.pretrained]
        for seed in SEEDS:
            count = {objective: len(parts(seed, objective)) for objective in OBJECTIVES}
            for objective in OBJECTIVES:
                found += [part.replace("part.json", name) for part in parts(seed, objective)]
            for arm in MADE:
                stages = [stage for stage in ("align", "joint_sft") if arm in CONFIG.arms_with(stage)]
                if arm in CONFIG.arms_with("ia_sft"):
                    stages += [f"ia_sft/iter-{iteration}" for iteration in range(count[CONFIG.recipe(arm).objective])]
                found += expand(SYSTEM + "/{stage}/{name}", arm=arm, seed=seed, stage=stages, name=name)
        return found

    return files


def every_part(wildcards):
    return [part for seed in SEEDS for objective in OBJECTIVES for part in parts(seed, objective)]


# Which test sets a machine spoke.
SYNTHETIC = " ".join(f"--synthetic {name}" for name in TESTS if is_synthetic(CONFIG.data.test[name].split))


rule table_main:
    input:
        config="results/config/report.json",
        scores=SCORES,
        significance="results/tables/significance.csv",
        published=in_repo(CONFIG.published) if CONFIG.published else [],
        provenance=of_each_job("provenance.json"),
    output:
        report("results/tables/main.csv", category="Tables", caption="../report/table.rst"),
    params:
        published=f"--published {in_repo(CONFIG.published)}" if CONFIG.published else "",
        synthetic=SYNTHETIC,
    log:
        "results/logs/table_main.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.tables main $(printf -- '--scores %s ' {input.scores})"
        " $(printf -- '--provenance %s ' {input.provenance}) --significance {input.significance} {params.synthetic} {params.published} --out {output} 2>&1 | tee {log}"


rule table_breakdown:
    # The same errors by domain and by speaker.
    input:
        config="results/config/report.json",
        scores=SCORES,
    output:
        report("results/tables/breakdown.csv", category="Tables", caption="../report/table.rst"),
    params:
        synthetic=SYNTHETIC,
    log:
        "results/logs/table_breakdown.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.tables breakdown $(printf -- '--scores %s ' {input.scores}) {params.synthetic} --out {output} 2>&1 | tee {log}"


rule table_render:
    input:
        config="results/config/report.json",
        main="results/tables/main.csv",
    output:
        markdown="results/tables/main.md",
        latex="results/tables/main.tex",
    log:
        "results/logs/table_render.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.tables render --main {input.main} --markdown {output.markdown} --latex {output.latex} 2>&1 | tee {log}"


rule table_timeline:
    input:
        config="results/config/report.json",
        provenance=of_each_job("provenance.json"),
    output:
        report("results/tables/timeline.csv", category="Tables", caption="../report/table.rst"),
    log:
        "results/logs/table_timeline.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.jobs timeline $(printf -- '--provenance %s ' {input.provenance}) --out {output} 2>&1 | tee {log}"


rule table_cost:
    # What each arm took, by training job; those that arms share are in each of them.
    input:
        config="results/config/report.json",
        provenance=of_each_job("provenance.json"),
    output:
        report("results/tables/cost.csv", category="Tables", caption="../report/table.rst"),
    log:
        "results/logs/table_cost.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.jobs cost $(printf -- '--provenance %s ' {input.provenance}) --out {output} 2>&1 | tee {log}"


rule table_ablation:
    # The arms side by side, from other tables.
    input:
        config="results/config/report.json",
        main="results/tables/main.csv",
        significance="results/tables/significance.csv",
        entropy="results/tables/entropy.csv",
    output:
        report("results/tables/ablation.csv", category="Tables", caption="../report/table.rst"),
    params:
        baseline=REPORTED,
    log:
        "results/logs/table_ablation.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.ablation --main {input.main} --significance {input.significance} --entropy {input.entropy}"
        " --baseline {params.baseline} --out {output} 2>&1 | tee {log}"


rule table_curves:
    input:
        config="results/config/report.json",
        curves=of_each_job("train.jsonl"),
    output:
        "results/tables/curves.csv",
    log:
        "results/logs/table_curves.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.jobs curves $(printf -- '--curves %s ' {input.curves}) --out {output} 2>&1 | tee {log}"


rule table_cka:
    input:
        report="results/config/report.json",
        parts=every_part,
        config="results/config/pretrain.json",
    output:
        report("results/tables/cka.csv", category="Tables", caption="../report/table.rst"),
    log:
        "results/logs/table_cka.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.jobs cka $(printf -- '--parts %s ' {input.parts}) --config {input.config}"
        " --out {output} 2>&1 | tee {log}"


FIGURES = ["errors", "hallucination", "curves", "cka", "timeline"]


rule figures:
    input:
        config="results/config/report.json",
        main="results/tables/main.csv",
        curves="results/tables/curves.csv",
        cka="results/tables/cka.csv",
        timeline="results/tables/timeline.csv",
        hallucination="results/tables/hallucination.csv",
    output:
        report(
            expand("results/figures/{name}.svg", name=FIGURES), category="Figures", caption="../report/figure.rst"
        ),
        expand("results/figures/{name}.png", name=FIGURES),
    params:
        synthetic="--synthetic" if any(map(is_synthetic, CONFIG.data.train)) else "",
        out=subpath(output[0], parent=True),
    log:
        "results/logs/figures.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.figures --main {input.main} --curves {input.curves} --cka {input.cka}"
        " --timeline {input.timeline} --hallucination {input.hallucination} {params.synthetic} --out {params.out} 2>&1 | tee {log}"


rule resolved_config:
    # Every parameter of the run, defaults included, for the reader of the report.
    input:
        ANCHOR,
    output:
        "results/config/resolved.yaml",
    params:
        text=RESOLVED,
    localrule: True
    shell:
        "printf '%s' {params.text:q} > {output}"


rule report:
    input:
        report="results/config/report.json",
        main="results/tables/main.csv",
        breakdown="results/tables/breakdown.csv",
        cka="results/tables/cka.csv",
        timeline="results/tables/timeline.csv",
        entropy="results/tables/entropy.csv",
        ablation="results/tables/ablation.csv",
        cost="results/tables/cost.csv",
        figures=expand(
            "results/figures/{name}.svg", name=[*FIGURES, *ENTROPY_FIGURES]
        ),
        hyps=expand("results/decode/{arm}/seed-{seed}/{testset}.jsonl", arm=REPORTED, seed=SEEDS[0], testset=TESTS),
        browse=expand("results/decode/{arm}/seed-{seed}/{testset}.jsonl", arm=ARMS, seed=SEEDS[0], testset=TESTS),
        browse_peers=of_peers("results/decode/peers/{peer}/{testset}.jsonl"),
        errors=expand("results/metrics/score/{arm}/seed-{seed}/{testset}.errors.txt", arm=REPORTED, seed=SEEDS[0], testset=TESTS),
        quality=[manifest(split).replace(".jsonl.gz", ".quality.json") for split in SPLITS],
        provenance=of_each_job("provenance.json"),
        hallucinations="results/metrics/hallucination/examples.jsonl",
        heard=expand("results/audio/conditions/{testset}.flac", testset=TESTS),
        config="results/config/resolved.yaml",
    output:
        "results/report/index.html",
    log:
        "results/logs/report.log",
    shell:
        RECORD + "python -m entropy_asr.reporting.report --main {input.main} --breakdown {input.breakdown} --cka {input.cka} --timeline {input.timeline}"
        " --entropy {input.entropy} --ablation {input.ablation} --cost {input.cost} $(printf -- '--figures %s ' {input.figures}) $(printf -- '--hyps %s ' {input.hyps})"
        " $(printf -- '--browse %s ' {input.browse} {input.browse_peers}) $(printf -- '--quality %s ' {input.quality}) $(printf -- '--provenance %s ' {input.provenance})"
        " $(printf -- '--errors %s ' {input.errors}) --hallucinations {input.hallucinations}"
        " --config {input.config} --out {output} 2>&1 | tee {log}"
