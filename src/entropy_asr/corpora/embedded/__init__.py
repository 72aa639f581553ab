"""The embedded corpus: in-car requests and everyday sentences in Mandarin and English, read by SYNTHETIC voices.

The audio ships with the repository (`data/embedded`), so that the main job needs no download. This package makes it
from scratch, a step a module, each a command of its own (`python -m entropy_asr.corpora.embedded.<module> --help`):

* `fetch`            unpack the data files of the pinned packages, refusing a wrong sha256
* `sentences`        slot grammar (`grammar`) and HSK sentences -> a plan: who says what, in which split, how fast
* `synthesize`       plan -> one Ogg-Opus file an utterance (`kokoro` drives the TTS model, `opus` writes the files)
* `intelligibility`  an independent recogniser reads every file back; what it cannot understand is dropped
* `lm_text`          many more sentences, for the language model; none that is read in any split
* `pronounce`        which of CMUdict's pronunciations the voice was told to say, word by word
* `pack`             tars, `utterances.jsonl`, `dropped.jsonl`, `SHA256SUMS`
* `tables`           the figures of docs/corpus.md
* `pack_lm`          the small language model that was trained on its text, as the repository ships it
* `compare`          holds a corpus made from scratch to the committed one

The training code needs none of these: it reads the committed archives.
"""
