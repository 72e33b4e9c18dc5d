#compdef unlucky
# Completions of unlucky for zsh, as `unlucky completion zsh` prints them: the file
# _unlucky of a folder of $fpath, or sourced behind compinit.
_unlucky() {
	local -a commands=(
{{- range .}}
		'{{.Name}}:{{zsh .Summary}}'
{{- end}}
		'help:print the help of a command'
	)
	if ((CURRENT == 2)); then
		[[ $words[2] == -* ]] && compadd -- -h -version || _describe command commands
		return
	fi
	local command=$words[2]
	shift words
	((CURRENT--))
	case $command in
	help) _describe command commands ;;
{{- range .}}
	{{.Name}})
		_arguments : '(- *)-h[print its help]' \
	{{- range .Flags}}
			'-{{.Name}}[{{zsh .Brief}}]{{if .Value}}:{{zsh .Value}}:{{template "zsh" .Values}}{{end}}' \
	{{- end}}
			'*: :{{template "zsh" .Values}}'
		;;
{{- end}}
	esac
}
if [[ $funcstack[1] == _unlucky ]]; then
	_unlucky "$@"
else
	compdef _unlucky unlucky
fi
{{define "zsh"}}{{if or .Words .Files .Folders -}}
	{ {{if .Words}}compadd -- {{join .Words}}; {{end}}{{if .Folders}}_files -/; {{end}}{{range .Files}}_files{{if .}} -g "*{{.}}"{{end}}; {{end}}}
{{- else}} {{end}}{{end -}}
