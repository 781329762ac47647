#!/usr/bin/env bash
# A private Slurm on this machine, for tests: a controller and two nodes, n1 and n2, as this user.
#
#   tests/slurm/setup.sh install   Debian's packages and shellcheck, if root and apt are available;
#                                  else prints why not and succeeds
#   tests/slurm/setup.sh start DIR a cluster in DIR (no spaces); prints what to export
#   tests/slurm/setup.sh stop DIR  ends it
#
# Everything is in DIR, including munge's key and socket, and the ports are free ones, so that an
# existing Slurm on the machine is not touched. Partitions: `low` (the default), whose jobs requeue
# when a job of `high` needs their nodes, and `grace`, the same with 60 seconds of grace.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

have() { command -v "$1" >/dev/null; }

install() {
  if have slurmctld && have slurmd && have munged && have shellcheck; then
    echo "slurm: found $(slurmctld -V)"
  elif [[ $(id -u) -ne 0 ]] || ! have apt-get; then
    echo "slurm: not installed, since that needs root and apt-get; its tests will be skipped"
  elif try_apt >/dev/null; then
    echo "slurm: installed $(slurmctld -V)"
  else
    echo "slurm: its packages could not be installed; its tests will be skipped"
  fi
}

try_apt() {
  export DEBIAN_FRONTEND=noninteractive
  timeout 60 apt-get update -qq &&
    timeout 200 apt-get install -y -qq --no-install-recommends slurm-wlm munge shellcheck
}

free_ports() {
  python3 -c '
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))' "$1"
}

write_conf() {
  local dir=$1 user host controller n1 n2
  user=$(id -un) host=$(uname -n)
  host=${host%%.*}
  read -r controller n1 n2 <<<"$(free_ports 3)"
  cat >"$dir/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# A requeued job restarts after cred_expire seconds at the earliest; the default is two minutes.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
CompleteWait=0
ReturnToService=2
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n1 CPUs=4 RealMemory=16000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n2 CPUs=4 RealMemory=16000
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=grace Nodes=n1,n2 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
CONF
}

start() {
  local dir=$1 node
  mkdir -p "$dir/state" "$dir/spool.n1" "$dir/spool.n2"
  chmod 755 "$dir"
  write_conf "$dir"
  head -c 128 /dev/urandom >"$dir/munge.key"
  chmod 400 "$dir/munge.key"
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
    --pid-file="$dir/munged.pid" --seed-file="$dir/munge.seed" --log-file="$dir/munged.log"
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -c
  for node in n1 n2; do slurmd -N "$node"; done
  for _ in $(seq 100); do
    if [[ $(sinfo --noheader --partition=low --states=idle --format=%D 2>/dev/null) == 2 ]]; then
      echo "export SLURM_CONF=$dir/slurm.conf"
      return
    fi
    sleep 0.2
  done
  tail -n 20 "$dir"/*.log >&2
  echo "slurm: the nodes did not come up" >&2
  return 1
}

stop() {
  local dir=$1 file
  SLURM_CONF=$dir/slurm.conf timeout 20 scancel --quiet --user="$(id -un)" || true
  for file in "$dir"/slurmd.n1.pid "$dir"/slurmd.n2.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
    [[ -f $file ]] || continue
    kill "$(<"$file")" 2>/dev/null || true
    for _ in $(seq 50); do
      [[ -f $file ]] || break
      sleep 0.1
    done
  done
}

case ${1:-} in
  install) install ;;
  start | stop)
    [[ $# -eq 2 && $2 != *' '* ]] || { sed -n '2,8p' "$0" >&2; exit 2; }
    "$1" "$2"
    ;;
  *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
