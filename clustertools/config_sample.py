"""The sample config: every key once, with its meaning. It loads as it is, and a test sees to that."""

SAMPLE = """\
# clustertools: /etc/clustertools/config.yaml
# Every key is optional unless it says otherwise. Files in /etc/clustertools/config.d/*.yaml are read after
# this one, then $CLUSTERTOOLS_CONFIG or --config FILE, then -o path.to.key=value; the later one wins.
# Durations and sizes carry units: 90s, 5m, 1h30m, 2d; 80GiB (binary), 80GB (decimal); 400Gb/s (bits).
# `clustertools config check` checks it, `clustertools config show --origin` says where each value comes from.

cluster: alps                       # in every message
state_dir: /var/lib/clustertools    # on a local disk, never on NFS, Lustre or GPFS
site_checks: [/etc/clustertools/checks.d]
scheduler: auto                     # where the jobs run: auto (Slurm, where its commands are), slurm or none

# What to expect of the nodes, beside what the hardware catalogue knows (`clustertools config expectations`).
node_classes:
  h100:
    nodes: gpu-[001-128]            # required
    hardware: DGX H100 or H200      # unset: recognised by what is there; none: nothing of the catalogue
    gpu_count: 8
    gpu_name: H100
    gpu_memory: 80GiB
    memory: 2TiB
    cpu_count: 224
    ib_ports: 8
    ib_rate: 400Gb/s
    allreduce_busbw: 360GB/s        # inside one node
    ecc: true
    mounts: [/home, /scratch]
    expect:                         # for the site's own checks, handed over as it is
      scratch_bytes: 3TB

# Only checks that shall run otherwise than they declare. `clustertools checks list` shows them all.
checks:
  gpu_ecc:
    enabled: true
    observe: true                   # report, but never act on it
    interval: 5m
    confirm: 2                      # passes in a row before it is believed
    timeout: 20s
    limits: {}                      # the check's own, such as {uncorrected: 0}

# Programs that follow the Nagios contract. This one is the check plugin_cables with the code PluginCables;
# `checks: {plugin_cables: {observe: true}}` tunes it as any other. A CRITICAL is told, and acted on only
# where a playbook in /etc/clustertools/playbooks.d names the code.
plugins:
  cables:
    command: [/usr/local/lib/nagios/check_cables, --all]    # a full path or a name on PATH; no shell reads it
    timeout: 10s
    interval: 5m
    stages: [watch, preflight]      # also prolog, epilog, daily

# Runs to watch. A job that is not named here is never touched.
jobs:
  pretrain:
    name: pretrain-*                # the scheduler's job name; default: the key
    user: alice
    partition: large
    comment: ""                     # only jobs with this --comment, as a pattern
    job: ""                         # only the job of this number
    array: tasks                    # or chain: the tasks are the starts of one run, one after the other
    log: [/shared/runs/pretrain/logs/*.log]
    metrics: /shared/runs/pretrain/metrics.jsonl
    checkpoints: /shared/runs/pretrain/checkpoints
    total_steps: 500000
    command: [python, train.py, --resume, "{checkpoint}"]    # for one machine without a scheduler
    resume:                         # how a restarted run learns where to begin
      kind: placeholder             # env, placeholder, tracker (the framework's own file), file, newest, none
      name: "{checkpoint}"
    hang:                           # silence longer than both of the first two is a hang
      minimum: 5m
      factor: 5                     # times the run's own median step
      startup: 30m                  # before the first step
    loss:                           # what is made of its loss, gradient norm and loss scale
      rollback: never               # or on-divergence: back to before a loss that does not recover, once
      extra: []                     # further metrics that are watched like a loss, such as [train/aux_loss]
      kinds_off: []                 # what nobody shall hear of, such as [slow_bump, grad_burst]
    again: auto                     # how Slurm begins it anew: requeue, submit (by `command`), or auto
    on_time_limit: leave            # or restart
    look: auto                      # the way to its nodes when it is in doubt: ssh, srun or none
    preflight: false                # look at its nodes by the passive checks before it is started anew
    kill_switch: /shared/runs/pretrain/STOP    # while it exists the run is never started anew
    deep_verify: true               # read every byte of a checkpoint before resuming from it
    max_restarts_without_progress: 3
    grace: 30s                      # between SIGTERM and SIGKILL

# Where news go. A secret is never in this file: name the file or the environment variable that holds it.
# A systemd credential is a file: /run/credentials/clustertools.service/NAME.
sinks:
  team:
    kind: slack
    channel: "#gpu-oncall"
    token_file: /etc/clustertools/slack-token     # or token_env: SLACK_BOT_TOKEN
    min_status: WARNING
    kinds: [opened, reopened, worsened, resolved]
    only: []                        # patterns of incident keys, such as ["Job*:run:pretrain-*", "Gpu*"]
    classes: []                     # those on nodes of these node_classes, beside those of `only`
    remind: 4h                      # tell again what is CRITICAL, open and in nobody's hands; 0s: never
  chat:
    kind: webhook
    webhook_file: /etc/clustertools/webhook       # the whole address; or webhook_env: CHAT_WEBHOOK
    body: text                      # what chat services take; event: the whole message as JSON
  pager:
    kind: pagerduty
    token_env: PAGERDUTY_ROUTING_KEY
    min_status: CRITICAL
  alerts:
    kind: alertmanager
    url: http://alertmanager:9093
    ca_file: ""                     # a certificate authority of the site's own, for any kind
  mail:
    kind: mail
    server: smtp.example.org        # or HOST:PORT
    tls: starttls                   # tls: from the start; none: for a relay on this machine
    sender: clustertools@example.org
    to: [gpu-oncall@example.org]
    user: clustertools              # with the password in token_file or token_env
    token_file: /etc/clustertools/mail-password
  heartbeat:
    kind: deadman                   # called only after a pass that could see everything
    webhook_env: DEADMAN_URL
    method: GET                     # or POST
  prometheus:
    kind: metrics
    path: /var/lib/node_exporter/clustertools.prom

# What may be done. Nothing, until you say so.
policy:
  mode: observe                     # observe, ask or act
  per_playbook: {}                  # such as {gpu-reset: ask}
  budgets:
    per_node_per_day: 2
    restarts_per_hour: 6
  circuit_breaker:                  # more nodes than both of these want the same: stop, a person must look
    nodes: 4
    fraction: 0.1
    window: 30m
  earned:                           # before anything is done to a node for a code
    cases: 0                        # alarms of it that people have judged; 0: none are needed
    precision: 0.9                  # the share of true ones among them
  flap_window: 30m                  # an incident that returns within this is the same one
  pause_file: /etc/clustertools/pause
  commands:                         # all that the step `run` of a playbook may name
    notify-vendor: [/usr/local/sbin/open-vendor-ticket, --quiet]

# What Slurm's health check and prolog do on each node (bin/ct-healthcheck, bin/ct-prolog), in mode act.
node_health:
  hold: 10m                         # all well for so long before a node that it drained is resumed
  max_nodes: 8                      # drain no more when so many nodes carry our reason,
  max_fraction: 0.1                 # or when they are this share of the node's class
  slurm_conf: ""                    # where it is not /etc/slurm/slurm.conf
  textfile: /var/lib/node_exporter/clustertools-node.prom

# What `clustertools preflight` does where its command line says nothing else.
preflight:
  transport: auto                   # auto: srun for a job or idle nodes of Slurm, else ssh; or local
  budget: 5m
  python: /shared/env/bin/python    # on the nodes, with PyTorch: the job's own
  interface: ib0                    # where the ranks of the collectives meet; default: what all nodes share
  data: [/scratch/data]             # read from all nodes at once
  checkpoints: [/scratch/checkpoints]    # a small file is written from all nodes, and taken away
  without: []                       # checks and probes that do not count
  topology:                         # default: Slurm's topology
    leaf1: gpu-[001-064]
    leaf2: gpu-[065-128]
  partition: ""                     # Slurm's, for nodes that are in no job
  account: ""
  qos: ""
  reservation: maintenance
"""
