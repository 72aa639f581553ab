# From corpora to manifests, statistics, phonemes, tokenizer and the language model to start from.
import shlex


rule unpack_corpus:
    # The corpus that ships with the repository: hashes verified, archives unpacked.
    input:
        config="results/config/unpack.json",
        sums=in_repo("data/embedded/SHA256SUMS"),
        listing=in_repo("data/embedded/utterances.jsonl"),
    output:
        "results/audio/embedded/unpacked.json",
    params:
        limit=f"--limit {CONFIG.quality.max_utterances}" if CONFIG.quality.max_utterances else "",
    log:
        "results/logs/unpack_corpus.log",
    threads: 2
    shell:
        RECORD + "python -m entropy_asr.corpora.unpack --corpus $(dirname {input.sums}) --out $(dirname {output}) --threads {threads}"
        " {params.limit} 2>&1 | tee {log}"


for name, corpus in CONFIG.data.corpora.items():

    rule:
        name:
            f"manifests_{name}"
        input:
            # Of a recorded corpus, the config file has the hashes of its listings, and names, sizes and times of its audio files.
            config=f"results/config/manifests.{name}.json",
            audio="results/audio/embedded/unpacked.json" if corpus.kind == "embedded" else [],
        output:
            cuts=expand("results/manifests/{corpus}/{split}.jsonl.gz", corpus=name, split=corpus.splits),
            quality=expand("results/manifests/{corpus}/{split}.quality.json", corpus=name, split=corpus.splits),
            excluded=expand("results/manifests/{corpus}/{split}.excluded.jsonl", corpus=name, split=corpus.splits),
        params:
            corpus=shlex.quote(in_repo(corpus.path)),
            options=(
                f"--kind {corpus.kind} "
                + ("--audio results/audio/embedded " if corpus.kind == "embedded" else "")
                + ("--synthetic " if corpus.synthetic else "")
                + " ".join(f"--split {split}" for split in corpus.splits)
            ),
            out=f"results/manifests/{name}",
        log:
            f"results/logs/manifests/{name}.log",
        shell:
            RECORD + "python -m entropy_asr.corpora.manifest --config {input.config} --corpus {params.corpus} {params.options}"
            " --out {params.out} 2>&1 | tee {log}"


rule feature_stats:
    input:
        config="results/config/feature_stats.json",
        cuts=TRAIN,
    output:
        "results/features/stats.json",
    log:
        "results/logs/feature_stats.log",
    shell:
        RECORD + "python -m entropy_asr.audio.features --config {input.config} $(printf -- '--cuts %s ' {input.cuts}) --out {output} 2>&1 | tee {log}"


rule precompute_features:
    # With engine.precompute_features: the manifests that training reads, with stored features.
    input:
        config="results/config/precompute_features.json",
        cuts="results/manifests/{corpus}/{split}.jsonl.gz",
    output:
        cuts="results/audio/features/{corpus}/{split}.jsonl.gz",
        features=directory("results/audio/features/{corpus}/{split}"),
    log:
        "results/logs/precompute_features/{corpus}/{split}.log",
    shell:
        RECORD + "python -m entropy_asr.audio.precompute_features --config {input.config} --cuts {input.cuts} --out {output.features} 2>&1 | tee {log}"


rule phonemes:
    input:
        config="results/config/phonemes.json",
    output:
        "results/text/phonemes/tokens.txt",
    log:
        "results/logs/phonemes.log",
    shell:
        RECORD + "python -m entropy_asr.text.phonemes --out {output} 2>&1 | tee {log}"


rule units:
    # Text units of the baselines' encoders, from the training transcripts.
    input:
        config="results/config/units.json",
        cuts=TRAIN,
    output:
        "results/text/units/tokenizer.json",
    log:
        "results/logs/units.log",
    shell:
        RECORD + "python -m entropy_asr.text.units --config {input.config} $(printf -- '--cuts %s ' {input.cuts}) --out {output} 2>&1 | tee {log}"


rule tokenizer:
    input:
        config="results/config/tokenizer.json",
        text=in_repo(CONFIG.data.lm_text) if CONFIG.data.lm_text else [],
    output:
        "results/text/tokenizer/tokenizer.json",
    log:
        "results/logs/tokenizer.log",
    shell:
        RECORD + "python -m entropy_asr.text.tokenizer --config {input.config} --text {input.text} --out $(dirname {output}) 2>&1 | tee {log}"


def lm_source(llm, tokenizer):
    """What a language model is made of, as inputs of its rule and as words of its command."""
    if llm.pretrained is None:
        text = in_repo(CONFIG.data.lm_text)
        return {"text": text, "tokenizer": f"{tokenizer}/tokenizer.json"}, f"--text {text} --tokenizer {tokenizer}"
    folder = in_repo(llm.pretrained)
    files = sorted(str(path) for path in Path(folder).glob("*") if path.is_file() and not path.name.startswith("."))
    return ({"model": files}, f"--folder {shlex.quote(folder)}") if files else ({}, "")


LM_INPUTS, LM_OPTIONS = lm_source(CONFIG.llm, "results/text/tokenizer")
SMALL_LM_INPUTS, SMALL_LM_OPTIONS = lm_source(CONFIG.small_llm, "results/text/small_tokenizer")


rule lm:
    # Which pretrained model; or, where there is none, a language model trained here on the corpus's text.
    input:
        **LM_INPUTS,
        config="results/config/lm.json",
    output:
        lm="results/text/lm/lm.json",
        provenance="results/text/lm/provenance.json",
        model=[] if CONFIG.llm.pretrained else ["results/text/lm/model.safetensors", "results/text/lm/train.jsonl"],
    params:
        source=LM_OPTIONS,
        out=subpath(output.lm, parent=True),
        running="results/state/lm",
    log:
        "results/logs/lm.log",
    benchmark:
        "results/benchmarks/lm.tsv"
    priority: 12  # alignment waits for it
    threads: CONFIG.resources.cpus
    resources:
        **RESOURCES["lm"],
    localrule: CONFIG.llm.pretrained is not None  # writes a name
    shell:
        RECORD + "{LAUNCH[lm]} entropy_asr.stages.lm --config {input.config} {params.source} --running {params.running} --out {params.out} 2>&1 | tee {log}"


# The arm small_llm: the same rules, from the config's section small_llm.
use rule tokenizer as small_tokenizer with:
    input:
        config="results/config/small_tokenizer.json",
        text=in_repo(CONFIG.data.lm_text) if CONFIG.data.lm_text else [],
    output:
        "results/text/small_tokenizer/tokenizer.json",
    log:
        "results/logs/small_tokenizer.log",


use rule lm as small_lm with:
    input:
        **SMALL_LM_INPUTS,
        config="results/config/small_lm.json",
    output:
        lm="results/text/small_lm/lm.json",
        provenance="results/text/small_lm/provenance.json",
        model=[] if CONFIG.small_llm.pretrained else ["results/text/small_lm/model.safetensors", "results/text/small_lm/train.jsonl"],
    params:
        source=SMALL_LM_OPTIONS,
        out=subpath(output.lm, parent=True),
        running="results/state/small_lm",
    log:
        "results/logs/small_lm.log",
    benchmark:
        "results/benchmarks/small_lm.tsv"
    localrule: CONFIG.small_llm.pretrained is not None
