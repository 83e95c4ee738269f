#!/usr/bin/env bash
# Build the CPU image of this checkout with buildah, on a Debian that debootstrap makes, and run it: `make image-check`.
# Needs root, buildah and debootstrap: ten minutes and 15 GB. Options are passed on to `buildah build`, such as
# --volume and --env for a package index of your own.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in buildah debootstrap; do
    command -v "$program" > /dev/null || { echo "image-check: $program is not installed" >&2; exit 2; }
done
base=localhost/rollcall-base image=localhost/rollcall:check
commit=$(git rev-parse HEAD)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

if ! buildah inspect --type image "$base" &> /dev/null; then
    packages=python3.11,python3.11-dev,python3.11-venv,gcc,libc6-dev,libnuma1,ca-certificates
    debootstrap --variant=minbase --include="$packages" bookworm "$folder/root" > "$folder/log" || { cat "$folder/log"; exit 1; }
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$folder/root" / > /dev/null
    buildah commit --quiet --rm "$container" "$base" > /dev/null
fi
digest=$(buildah inspect --type image --format '{{.FromImageDigest}}' "$base")
echo "image-check: base $base@$digest"

buildah build --isolation=chroot --layers --build-arg "BASE=$base@$digest" --build-arg DEVICE=cpu \
    --build-arg "COMMIT=$commit" --file deploy/Dockerfile --tag "$image" "$@" .

container=$(buildah from --pull-never "$image")
trap 'rm -rf "$folder"; buildah rm "$container" > /dev/null' EXIT
inside() { buildah run --isolation=chroot "$container" -- "$@"; }
[[ $(inside id -u) == 10001 ]]
[[ $(inside cat COMMIT) == "$commit" ]]
inside python -m learner.main --dry-run run_dir=/shared/run
inside sh -c '! touch /app/anything' 2> /dev/null # code and packages belong to root
for unneeded in pytest mypy ruff pip; do
    if inside python -c "import $unneeded" 2> /dev/null; then echo "image-check: $unneeded is in the image" >&2; exit 1; fi
done
inside python -m learner.main steps=2 rollout.prompts_per_step=2 evaluation.limit=10 learner.warmup_steps=1 run_dir=/shared/run
buildah images "$image"
