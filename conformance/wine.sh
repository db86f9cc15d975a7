#!/usr/bin/env bash
# Runs the tests of what has to be right on Windows as Windows programs, under Wine.
#
#   conformance/wine.sh [PACKAGE...]     default: keys, keys/spec, cas, layers, registry, executor, executor/hcs, executor/qemu/agent
#                                        and wire, plans, and caches
#
# Two are no packages. plans: obx.exe has to print the plan, with all keys, that obx prints on Linux for the same platform, of
# each spec in keys/spec/testdata/realworld. caches: results go from obx to obx.exe and back by export and import, and all are
# hits then.
#
# Wine is version 10, of Debian 13, in a directory of its own ($OBX_WINE, default ~/.cache/obx-test/wine), since older ones
# lack what Go programs need. It is made by mmdebstrap when it is missing. Every failure, also that of making it, is one of
# this script: nothing is skipped. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

wine=${OBX_WINE:-${XDG_CACHE_HOME:-$HOME/.cache}/obx-test/wine}
packages=("$@")
if [ ${#packages[@]} = 0 ]; then
	packages=(keys keys/spec cas layers registry executor executor/hcs executor/qemu/agent executor/qemu/wire plans caches)
fi

if [ "$(id -u)" != 0 ]; then
	echo "wine.sh: making a root file system for Wine needs root" >&2
	exit 1
fi
if [ ! -x "$wine/usr/lib/wine/wine64" ]; then
	echo "installing Wine 10 in $wine"
	rm -rf "$wine" "$wine.new"
	mkdir -p "$(dirname "$wine")"
	if ! mmdebstrap --quiet --variant=apt --include=wine64 trixie "$wine.new"; then
		rm -rf "$wine.new"
		echo "wine.sh: mmdebstrap cannot make a Debian 13 with wine64; its reasons are above" >&2
		exit 1
	fi
	mv "$wine.new" "$wine"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export GOOS=windows GOARCH=amd64 CGO_ENABLED=0
go build -o "$scratch/obx.exe" ./cmd/obx
GOOS=linux go build -o "$scratch/obx" ./cmd/obx
for p in "${packages[@]}"; do
	[ "$p" = plans ] || [ "$p" = caches ] || go test -c -o "$scratch/${p//\//-}.test.exe" "./$p"
done

# inside CURRENT PROGRAM ARGUMENT...: runs a Windows program in Wine's root file system. All that it starts ends with it.
inside() {
	unshare --mount --pid --fork --kill-child sh -c '
		set -e
		root=$1 src=$2 scratch=$3 dir=$4
		shift 4
		mount -t proc proc "$root/proc"
		mount -t tmpfs tmpfs "$root/tmp"
		mount -t tmpfs tmpfs "$root/root"
		mkdir -p "$root/tmp/src" "$root/tmp/scratch"
		mount --bind "$src" "$root/tmp/src"
		mount -o remount,bind,ro "$root/tmp/src"
		mount --bind "$scratch" "$root/tmp/scratch"
		exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/bin:/bin WINEDEBUG=-all WINEPREFIX=/root/prefix \
			sh -c "cd \"\$1\" && shift && exec \"\$@\"" sh "$dir" "$@"
	' sh "$wine" "$PWD" "$scratch" "$@"
}

# layout DIR OS [OS.VERSION] makes an image without layers.
layout() {
	local config manifest
	mkdir -p "$1/blobs/sha256"
	blob() {
		local d
		d=$(printf %s "$2" | sha256sum | cut -d' ' -f1)
		printf %s "$2" >"$1/blobs/sha256/$d"
		printf '"digest":"sha256:%s","size":%d' "$d" ${#2}
	}
	config=$(blob "$1" "{\"architecture\":\"amd64\",\"os\":\"$2\"${3:+,\"os.version\":\"$3\"},\"config\":{},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[]}}")
	manifest=$(blob "$1" "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",$config},\"layers\":[]}")
	printf '{"imageLayoutVersion":"1.0.0"}' >"$1/oci-layout"
	printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' "$manifest" >"$1/index.json"
}

# plans compares what obx and obx.exe plan.
plans() {
	local spec name p n src
	mkdir -p "$scratch/plans/src"
	layout "$scratch/plans/base-linux" linux
	layout "$scratch/plans/base-windows" windows 10.0.26100.1
	for spec in keys/spec/testdata/realworld/*.spec; do
		name=$(basename "$spec" .spec)
		p=linux
		case $name in *indows*) p=windows ;; esac
		cp "$spec" "$scratch/plans/$name.spec"
		# What the spec copies from has to be there, and its bases are the images above.
		grep -oE '\(src [^)]*\)' "$spec" | sed 's/(src //; s/)//' | tr -d '"' | tr ' ' '\n' | while read -r src; do
			case $src in
			. | ./ | /*) ;;
			src | packages | repo) mkdir -p "$scratch/plans/src/$src" && echo "$src" >"$scratch/plans/src/$src/x" ;;
			*) mkdir -p "$scratch/plans/src/$(dirname "$src")" && echo "$src" >"$scratch/plans/src/$src" ;;
			esac
		done
		{
			printf -- '--platform\n%s/amd64\n' $p
			grep -oE '\(from [^()]*\)' "$spec" | sed 's/(from //; s/)//' | sort -u | while read -r n; do printf -- '--base\n%s=oci:base-%s:latest\n' "$n" $p; done
		} >"$scratch/plans/$name.flags"
	done
	cat >"$scratch/plans/all" <<-'END'
		out=$1
		shift
		for spec in *.spec; do
			name=${spec%.spec}
			xargs -d '\n' "$@" plan --json --store "$out-store" "$spec" src <"$name.flags" >"$name.$out" || { echo "plan of $name fails" >&2; exit 1; }
			echo "--- PASS: plan of $name"
		done
	END
	(cd "$scratch/plans" && sh ./all linux "$scratch/obx" >/dev/null) || return
	inside /tmp/scratch/plans sh ./all windows /usr/lib/wine/wine64 'Z:\tmp\scratch\obx.exe' || return
	for spec in "$scratch"/plans/*.spec; do
		cmp "${spec%.spec}.linux" "${spec%.spec}.windows" || return
	done
}

# caches sends results to obx.exe and back.
caches() {
	local dir=$scratch/caches run
	mkdir -p "$dir/src"
	layout "$dir/base" linux
	echo one >"$dir/src/one"
	echo two >"$dir/src/two"
	cat >"$dir/spec" <<-'END'
		((build other ((from base) (copy (src one) (dst /dir/one))))
		 (from base)
		 (copy (from (build other)) (src /dir) (dst /dir))
		 (copy (src two) (dst /dir/two)))
	END
	run=("$scratch/obx" run "$dir/spec" "$dir/src" --base "base=oci:$dir/base:latest" --progress json)
	"${run[@]}" --store "$dir/first" && "$scratch/obx" cache export --store "$dir/first" --to "$dir/there.tar" --all || return
	for args in 'import there.tar' 'verify there.tar' 'verify' 'export --to back.tar --all'; do
		# shellcheck disable=SC2086
		inside /tmp/scratch/caches env OBX_STORE='Z:\tmp\scratch\caches\store' /usr/lib/wine/wine64 'Z:\tmp\scratch\obx.exe' cache $args || return
		echo "--- PASS: obx.exe cache $args"
	done
	"$scratch/obx" cache import --store "$dir/last" "$dir/back.tar" && "${run[@]}" --store "$dir/last" --offline >"$dir/out" || return
	cat "$dir/out"
	grep -q '"hits":3,"runs":0' "$dir/out" && echo "--- PASS: what came back hits"
}

# one PACKAGE: its output goes to PACKAGE.out in the scratch directory, its exit status to PACKAGE.status.
one() {
	local status=0 file=${1//\//-}
	case $1 in
	plans | caches) "$1" ;;
	*) inside "/tmp/src/$1" /usr/lib/wine/wine64 "Z:\\tmp\\scratch\\$file.test.exe" -test.v -test.timeout "${OBX_WINE_TIMEOUT:-10m}" ;;
	esac >"$scratch/$file.out" 2>&1 </dev/null || status=$?
	echo $status >"$scratch/$file.status"
}

# Two at a time: much of it is waiting for Wine to start.
for p in "${packages[@]}"; do
	while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
	one "$p" &
done
wait

total=0 failed=()
for p in "${packages[@]}"; do
	out=$scratch/${p//\//-}.out
	status=$(cat "$scratch/${p//\//-}.status")
	passed=$(grep -c -- '--- PASS' "$out" || true)
	skipped=$(grep -c -- '--- SKIP' "$out" || true)
	total=$((total + passed))
	echo "$p: $passed passed, $skipped skipped"
	if [ "$status" != 0 ] || [ "$passed" = 0 ]; then
		failed+=("$p")
		grep -v -E -- '^ *(=== |--- (PASS|SKIP))' "$out" | sed '/^goroutine /,$d' | tail -n 60 || true
		echo "$p: exit status $status" >&2
	fi
done
echo "Wine: $total tests passed"
if [ ${#failed[@]} != 0 ]; then
	echo "Wine: failed: ${failed[*]}" >&2
	exit 1
fi
