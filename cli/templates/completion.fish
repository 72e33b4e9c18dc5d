# Completions of unlucky for fish, as `unlucky completion fish` prints them.
function __unlucky_runs
    set -l words (commandline -opc)
    test "$words[2]" = "$argv[1]"
end
complete -c unlucky -f
complete -c unlucky -n '__unlucky_runs ""' -o version -d 'print the version'
complete -c unlucky -n '__unlucky_runs ""' -a help -d 'print the help of a command'
complete -c unlucky -n '__unlucky_runs help' -a '{{range .}}{{.Name}} {{end}}'
{{- range $c := .}}
complete -c unlucky -n '__unlucky_runs ""' -a {{.Name}} -d '{{fish .Summary}}'
{{- with .Values}}{{if or .Words .Files .Folders}}
complete -c unlucky -n '__unlucky_runs {{$c.Name}}' -a '{{template "fish" .}}'
{{- end}}{{end}}
{{- range .Flags}}
complete -c unlucky -n '__unlucky_runs {{$c.Name}}' -o {{.Name}} -d '{{fish .Brief}}'
{{- if .Value}} -x{{with .Values}}{{if or .Words .Files .Folders}} -a '{{template "fish" .}}'{{end}}{{end}}{{end}}
{{- end}}
{{- end}}
{{define "fish"}}{{join .Words}}{{if .Folders}} (__fish_complete_directories){{end}}{{range .Files}} (__fish_complete_{{if .}}suffix {{.}}{{else}}path{{end}}){{end}}{{end -}}
