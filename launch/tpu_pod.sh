#!/usr/bin/env bash
# Trains on a slice of Cloud TPU, of one host or many, from a machine with gcloud. For example:
#
#   export TPU=wsdl ZONE=us-east5-b TYPE=v6e-16
#   launch/tpu_pod.sh create     # ask for the slice: a queued resource
#   launch/tpu_pod.sh wait       # until it is there
#   launch/tpu_pod.sh install    # this repository on all its workers
#   launch/tpu_pod.sh run --config configs/patches.py:setup=a,source=celebahq \
#     --workdir gs://BUCKET/runs/patches-a
#   launch/tpu_pod.sh logs       # of worker 0, as they come; logs 3: of worker 3
#   launch/tpu_pod.sh delete     # it costs money until then
#
#   launch/tpu_pod.sh status     # ACTIVE, or SUSPENDED after a preemption: then
#   launch/tpu_pod.sh resume --config …    # as `run`: delete, create, wait, install and run
#   launch/tpu_pod.sh stop       # finish the step and save; the same `run` continues
#
# After --dry-run, as in `launch/tpu_pod.sh --dry-run create`, commands are printed and not run.
#
# Arguments of `run` are those of wsdl_jax.main. --workdir has to be a place that all workers see.
# Datasets are built on every worker, or copied from DATA. Each worker writes ~/wsdl-jax.log.
#
#   TPU          name of the slice and of its queued resource
#   ZONE         where, see https://cloud.google.com/tpu/docs/regions-zones
#   TYPE         v5litepod-16, v6e-16, v5p-32, v4-32, …
#   RUNTIME      image of the VMs, by default the one for TYPE
#   CREATE_FLAGS further flags for `create`, by default --spot; empty: on demand
#   REF          commit, branch or tag of this repository to install, by default HEAD
#   DATA         gs:// folder of prepared datasets to copy to every worker, by default none

set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

quote() { # the words, as a shell would read them
  local word line="" mark="'" escaped="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//$mark/$escaped}'"
    line+=" $word"
  done
  printf '%s' "${line# }"
}

call() {
  if [[ -n $dry_run ]]; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

on() { # workers, shell commands
  call gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

state() { # in a dry run: the command that asks for it
  call gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" \
    --format="value(state.state)"
}

create() {
  [[ -n ${TYPE:-} ]] || fail "TYPE is not set: v6e-16, for example"
  local runtime=${RUNTIME:-} flag
  if [[ -z $runtime ]]; then
    case $TYPE in
      v4-*) runtime=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) fail "TYPE=$TYPE is not known here: set RUNTIME, the image of its VMs" ;;
    esac
  fi
  set -- gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$runtime"
  for flag in ${CREATE_FLAGS---spot}; do
    set -- "$@" "$flag"
  done
  call "$@"
}

wait_for_it() {
  local now
  while true; do
    now=$(state)
    [[ -z $dry_run ]] || { printf '# until it says ACTIVE:\n%s\n' "$now" && return; }
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) fail "$TPU is $now: see status, then resume or delete" ;;
    esac
    echo "$TPU: $now" >&2
    sleep 30
  done
}

install() {
  local archive=dist/wsdl-jax.tar.gz
  call mkdir -p dist
  call git archive --format=tar.gz --output="$archive" "${REF:-HEAD}"
  call gcloud compute tpus tpu-vm scp "$archive" "$TPU:" --zone="$ZONE" --worker=all
  # The image's Python may be too old: uv brings one.
  on all "set -e
rm -rf wsdl-jax
mkdir wsdl-jax
tar -xzf wsdl-jax.tar.gz -C wsdl-jax
cd wsdl-jax
test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --quiet --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs]'${DATA:+
mkdir -p ~/tensorflow_datasets
gcloud storage rsync --recursive $(quote "$DATA") ~/tensorflow_datasets}"
}

run() {
  [[ " $*" == *" --workdir"* ]] || fail "$command needs --workdir=gs://…, which all workers see"
  # The run holds the lock for as long as it lives.
  on all "cd wsdl-jax || exit
exec 9>~/wsdl-jax.lock
flock --nonblock 9 || { echo 'error: a run is going on' >&2; exit 1; }
nohup .venv/bin/python -m wsdl_jax.main $(quote "$@") >>~/wsdl-jax.log 2>&1 </dev/null &
echo \$! >~/wsdl-jax.pid"
}

delete() {
  call gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force --quiet
}

resume() {
  [[ " $*" == *" --workdir"* ]] || fail "$command needs the arguments of run"
  local now
  now=$(state)
  [[ -z $dry_run ]] || echo "$now"
  while [[ $now == SUSPENDING ]]; do
    sleep 30
    now=$(state)
  done
  [[ $now != ACTIVE ]] || fail "$TPU is ACTIVE, not preempted: use run, or delete and create"
  delete
  create
  wait_for_it
  install
  run "$@"
}

dry_run=""
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
command=${1:-}
commands="create, wait, install, run, logs, status, stop, resume, delete"
case $command in
  create | install | run | status | stop | resume | delete | logs | wait) shift ;;
  -h | --help) exec sed -n '2,/^$/s/^#\( \|$\)//p' "$0" ;;
  *) fail "'$command' is not one of $commands; --help shows how they are used" ;;
esac
[[ -n ${TPU:-} ]] || fail "TPU is not set: the name of the slice"
[[ -n ${ZONE:-} ]] || fail "ZONE is not set: us-east5-b, for example"
cd "$(dirname "$0")/.."

case $command in
  wait) wait_for_it ;;
  logs) on "${1:-0}" "tail -n 100 -F wsdl-jax.log" ;;
  status) call gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" ;;
  stop) on all "kill -TERM \$(cat ~/wsdl-jax.pid)" ;;
  *) "$command" "$@" ;;
esac
