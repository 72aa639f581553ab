# The experiment: which file is made from which. Logic is in src/entropy_asr; the scale is in config/*.yaml.
#
#   snakemake --cores 2 results/tables/main.csv                                            the default scale, mini
#   snakemake --cores 2 all --configfile config/smoke.yaml                                 another scale, in runs/smoke
#   snakemake --profile workstation results/tables/main.csv                                mini, on one machine with GPUs
#   snakemake --profile slurm results/tables/main.csv                                      the paper's scale, on a cluster, in runs/paper
import os

from snakemake.utils import min_version

min_version("9.0")
if not workflow.configfiles:
    configfile: os.path.join(workflow.basedir, "config/mini.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/encoder.smk"
include: "workflow/rules/system.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/steps.smk"
include: "workflow/rules/cluster.smk"


rule all:
    default_target: True
    input:
        "results/tables/main.csv",
        "results/tables/main.md",
        "results/tables/entropy.csv",
        "results/tables/ablation.csv",
        "results/tables/cost.csv",
        "results/report/index.html",
