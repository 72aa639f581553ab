# What a Slurm site adds to all rules, and what is looked at before the first job is submitted. Included last.
for site_rule in workflow.rules:
    for name, value in cluster.site_resources(SITE, gpus="gres" in site_rule.resources).items():
        site_rule.resources[name] = value


onstart:
    # Only the coordinator comes here, not the snakemake inside of a job.
    if workflow.executor_plugin.name == "slurm":
        try:
            cluster.refuse_orphans(Path.cwd())
            cluster.requeue_preempted(Path.cwd())
        except InputError as error:
            raise WorkflowError(str(error))
