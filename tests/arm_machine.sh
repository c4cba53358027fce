#!/bin/bash
# A 64-bit ARM machine inside this one, for tests/test_arm.py: Debian for arm64 in a folder, run by qemu's user mode.
#
#   arm_machine.sh prepare FOLDER WHEEL      makes FOLDER/root and FOLDER/site (about 1 GB; about 350 MB of downloads)
#   arm_machine.sh run FOLDER CPU COMMAND    runs COMMAND in it on a processor of qemu's: cortex-a72, neoverse-n1, …
#
# Nothing of this machine is changed: qemu is registered for ARM programs in a user namespace of its own (Linux 6.7 or
# newer) that ends with the command. In the machine /app/site holds our wheel and its libraries, /app/shared is
# $ARM_SHARED, a folder of this machine. Neoverse-N1 is the nearest that qemu has to the Cortex-A78AE of a Jetson Orin.
set -euo pipefail

DEBIAN=bookworm
# With --variant=extract even what is essential must be named. numpy needs libstdc++, OpenVINO libgomp.
PACKAGES=dash,bash,coreutils,sed,grep,findutils,tar,gzip,libc-bin,base-files,mawk,util-linux,python3,python3-venv,libstdc++6,libgomp1
# The first bytes of a 64-bit ARM program, and which of their bits count; from qemu's scripts/qemu-binfmt-conf.sh.
MAGIC='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
MASK='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'

# unpack ARCHITECTURE SUITE FOLDER PACKAGES: Debian packages and what they need, unpacked and not configured.
unpack() {
    local mirror
    mirror=$(apt-get indextargets --format '$(SITE)' | head -n 1)
    mmdebstrap --quiet --variant=extract --mode=auto --architectures="$1" --include="$4" \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr "$2" "$3" "deb $mirror $2 main"
}

prepare() {
    local folder=$1 wheel=$2 minor platforms=()
    mkdir -p "$folder"
    # Static, so that it runs inside the other root. Of trixie: bookworm's knows no Neoverse-N2 and -V1.
    [ -x "$folder/qemu/usr/bin/qemu-aarch64" ] || unpack amd64 trixie "$folder/qemu" qemu-user
    if [ "$(cat "$folder/root/.ready" 2>/dev/null)" != "$PACKAGES" ]; then
        rm -rf "$folder/root"
        unpack arm64 "$DEBIAN" "$folder/root" "$PACKAGES"
        echo 'root:x:0:0:root:/root:/bin/bash' >"$folder/root/etc/passwd"
        echo 'root:x:0:' >"$folder/root/etc/group"
        mkdir -p "$folder"/root/{proc,sys,dev,root,tmp,app/site,app/shared}
        printf '%s' "$PACKAGES" >"$folder/root/.ready"
    fi
    # Fetched by this machine's pip for the other platform: under emulation pip alone takes a minute.
    for minor in 17 26 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
    rm -rf "$folder/site"
    "${PYTHON:-python3}" -m pip --disable-pip-version-check -q install --no-compile --target "$folder/site" \
        --implementation cp --python-version 3.11 --only-binary :all: "${platforms[@]}" --platform manylinux2014_aarch64 \
        "$wheel" onnxruntime openvino onnx pytest pydicom nibabel highdicom pylibjpeg pylibjpeg-openjpeg python-gdcm
}

# What /proc/cpuinfo says there: onnxruntime reads the features and dies of an x86 one.
cpuinfo() {
    local part features='fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs' core
    case $1 in
        cortex-a72) part=0xd08 features='fp asimd evtstrm crc32 cpuid' ;;
        neoverse-n1) part=0xd0c ;;
        neoverse-v1) part=0xd40 features="$features sve i8mm bf16" ;;
        neoverse-n2) part=0xd49 features="$features sve sve2 i8mm bf16" ;;
        *) echo "processor $1: must be one of cortex-a72, neoverse-n1, neoverse-v1, neoverse-n2" >&2 && exit 2 ;;
    esac
    for core in 0 1; do
        printf 'processor\t: %s\nBogoMIPS\t: 100.00\nFeatures\t: %s\nCPU implementer\t: 0x41\n' "$core" "$features"
        printf 'CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: %s\nCPU revision\t: 1\n\n' "$part"
    done
}

run() {
    local folder=$1 cpu=$2 command=$3
    cpuinfo "$cpu" >"$folder/cpuinfo-$cpu"
    FOLDER=$folder CPU=$cpu LINE=":arm:M::$MAGIC:$MASK:$folder/qemu/usr/bin/qemu-aarch64:FP" \
        unshare --user --map-root-user --mount --pid --fork bash -euc '
            mount -t tmpfs none /mnt && mkdir /mnt/formats && mount -t binfmt_misc none /mnt/formats
            printf "%s" "$LINE" >/mnt/formats/register
            cd "$FOLDER/root"
            mount --rbind /dev dev && mount --rbind /sys sys && mount -t proc proc proc && mount -t tmpfs none tmp
            mount --bind "$FOLDER/cpuinfo-$CPU" proc/cpuinfo
            mount --bind "$FOLDER/site" app/site && mount --bind "$ARM_SHARED" app/shared
            exec env -i QEMU_CPU="$CPU" HOME=/root LANG=C.UTF-8 PATH=/usr/bin:/bin OMP_NUM_THREADS=1 \
                PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app/site /usr/sbin/chroot . /bin/bash -c "$1"' arm "$command"
}

case ${1:-} in
    prepare) prepare "$2" "$3" ;;
    run) run "$2" "$3" "$4" ;;
    *) sed -n '2,/^set/p' "$0" | sed '$d' >&2 && exit 2 ;;
esac
