#!/bin/sh
{{- if .Run}}
# Boots {{.Layout.Name}} of {{.Scenario.Name}} by the command that has booted it.
# Arguments are given to that, behind its others.
{{- else}}
# Boots {{.Layout.Name}} of {{.Scenario.Name}} with QEMU alone. ACCEL=kvm or tcg overrules
# the accelerator; arguments are given to QEMU, behind its others.
{{- end}}
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
{{- if .Run}}
program={{quote (index .Machine.Program 0)}}
if ! command -v "$program" >/dev/null; then
	echo >&2 "run.sh: there is no program $program here"
	exit 1
fi
{{- else}}
qemu={{quote .Machine.Binary}} accel=${ACCEL:-{{.Accel}}}
if ! command -v "$qemu" >/dev/null; then
	echo >&2 "run.sh: $qemu is not installed: apt-get install {{.Need}}"
	exit 1
fi
{{- if eq .Machine.CPU "host"}}
cpu=host
[ "$accel" = kvm ] || cpu=max # there is no host under TCG
{{- end}}
{{- with .WithoutTCG}}
cpu={{quote $.Machine.CPU}}
[ "$accel" = tcg ] || cpu={{quote .}} # what is left out is for TCG
{{- end}}
{{- end}}
cat >&2 <<'END'
{{- if .Failed}}
run.sh: to be seen: {{.Seen}}
run.sh: a boot that passes prints instead what matches {{printf "%q" .PassLine}}
{{- else}}
run.sh: to be seen: it passes, and prints what matches {{printf "%q" .PassLine}}
{{- end}}
run.sh: the console follows; ^C ends {{if .Run}}it{{else}}QEMU{{end}}
END
{{- if .Run}}
exec {{.Run}} "$@"
{{- else}}
exec "$qemu"{{range .Options}} \
	{{.}}{{end}} \
	"$@"
{{- end}}
