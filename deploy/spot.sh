#!/usr/bin/env bash
# Drains this machine's Ray node when its cloud announces that it takes the machine back, so that training
# writes a checkpoint before: Ray's launcher does not look. Runs on every worker of cluster.yaml and
# deploy/cluster-gcp.yaml; on a machine that is not spot, the announcement never comes.
#
#   spot.sh aws|gcp SECONDS
#
# SECONDS: how long the node may still work, less than the notice (AWS gives 120 s, Google 30 s).
set -uo pipefail
cloud=$1 seconds=$2

announced_by_aws() {
  local base=${METADATA:-http://169.254.169.254}/latest token
  token=$(curl -fsS -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$base/api/token") &&
    curl -fsS -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" "$base/meta-data/spot/instance-action"
}

announced_by_gcp() {
  local base=${METADATA:-http://metadata.google.internal}/computeMetadata/v1
  [[ $(curl -fsS -m 2 -H 'Metadata-Flavor: Google' "$base/instance/preempted") == TRUE ]]
}

exec 9>"${TMPDIR:-/tmp}/dfdet-spot.lock"
flock --nonblock 9 || exit 0  # one is there already: `ray up` starts Ray again

until "announced_by_$cloud" 2>/dev/null; do sleep "${POLL_SECONDS:-2}"; done

until ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "$cloud takes the machine back" \
  --deadline-remaining-seconds "$seconds"; do sleep 1; done
