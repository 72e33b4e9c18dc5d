#!/bin/sh
# Boots {{.Layout.Name}} of {{.Scenario.Name}} with QEMU alone. ACCEL=kvm or tcg overrules
# the accelerator; arguments are given to QEMU, behind its others.
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
qemu={{quote .Machine.Binary}} accel=${ACCEL:-{{.Accel}}}
if ! command -v "$qemu" >/dev/null; then
	echo >&2 "run.sh: $qemu is not installed: apt-get install {{.Need}}"
	exit 1
fi
{{- if eq .Machine.CPU "host"}}
cpu=host
[ "$accel" = kvm ] || cpu=max # there is no host under TCG
{{- end}}
cat >&2 <<'END'
{{- if .Failed}}
run.sh: to be seen: {{.Seen}}
run.sh: a boot that passes prints instead what matches {{printf "%q" .PassLine}}
{{- else}}
run.sh: to be seen: it passes, and prints what matches {{printf "%q" .PassLine}}
{{- end}}
run.sh: the console follows; ^C ends QEMU
END
exec "$qemu"{{range .Options}} \
	{{.}}{{end}} \
	"$@"
