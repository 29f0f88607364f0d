# The watchdog's account in Slurm: an operator may hold, requeue, release, cancel and update the jobs of others,
# and drain and resume nodes; it may not change users, accounts or the configuration.
# With accounting (slurmdbd), as a Slurm administrator, once:
sacctmgr -i add account clustertools description="watchdog" organization="clustertools"
sacctmgr -i add user @USER@ account=clustertools adminlevel=Operator
# What it has then:
sacctmgr -nP show user @USER@ format=user,adminlevel
# Without accounting there are no operators: run the watchdog as SlurmUser (User= in the unit), or as root.
# An operator can start jobs only in its own name: a job that cannot be requeued (--no-requeue) is submitted anew
# only by a watchdog that runs as the job's owner or as root.
