# Completions of unlucky for bash, as `unlucky completion bash` prints them.
_unlucky() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
	local command=${COMP_WORDS[1]} flags= words= files= folders= ending
	if ((COMP_CWORD == 1)); then
		command= words='{{range .}}{{.Name}} {{end}}help' flags='-h -version'
	fi
	case $command in
	help) words='{{range .}}{{.Name}} {{end}}' ;;
{{- range .}}
	{{.Name}})
		flags='{{range .Flags}}-{{.Name}} {{end}}-h'
		case $before in
	{{- range .Flags}}{{if .Value}}
		-{{.Name}}){{template "bash" .Values}} ;;{{end}}{{end}}
		*){{template "bash" .Values}} ;;
		esac
		;;
{{- end}}
	esac
	mapfile -t COMPREPLY < <(
		case $word in
		-*) compgen -W "$flags" -- "$word" ;;
		*)
			compgen -W "$words" -- "$word"
			[[ ! $files$folders ]] || compgen -d -- "$word"
			for ending in $files; do
				compgen -f -X "!*${ending#-}" -- "$word"
			done | while read -r path; do
				[[ -d $path ]] || printf '%s\n' "$path"
			done
			;;
		esac
	)
	[[ ! $files$folders || $word == -* ]] || compopt -o filenames
}
complete -F _unlucky unlucky
{{define "bash"}}{{if .Words}} words='{{join .Words}}'{{end}}{{if .Files}} files='{{range .Files}}{{or . "-"}} {{end}}'{{end}}{{if .Folders}} folders=1{{end}}{{end -}}
