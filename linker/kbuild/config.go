package kbuild

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"unlucky/arch"
)

// renamed are configuration symbols by all their names, the oldest first. Of two
// names that a tree declares, the old one is `transitional`: it is read where the
// new one is not written down, so a config target's "# CONFIG_CFI is not set"
// beats CFI_CLANG=y.
var renamed = [][]string{
	{"CFI_CLANG", "CFI"}, // 6.18
	// The mitigations of 6.9 (arch/x86/Kconfig).
	{"PAGE_TABLE_ISOLATION", "MITIGATION_PAGE_TABLE_ISOLATION"},
	{"RETPOLINE", "MITIGATION_RETPOLINE"},
	{"RETHUNK", "MITIGATION_RETHUNK"},
	{"CPU_UNRET_ENTRY", "MITIGATION_UNRET_ENTRY"},
	{"CPU_IBPB_ENTRY", "MITIGATION_IBPB_ENTRY"},
	{"CPU_IBRS_ENTRY", "MITIGATION_IBRS_ENTRY"},
	{"CPU_SRSO", "MITIGATION_SRSO"},
	{"SLS", "MITIGATION_SLS"},
	{"CALL_DEPTH_TRACKING", "MITIGATION_CALL_DEPTH_TRACKING"},
}

// declaredIn are the files of a tree that declare the renamed symbols.
func declaredIn(a *arch.Arch) []string {
	return []string{"arch/Kconfig", a.Folder() + "/Kconfig"}
}

// symbolMap gives the name that a tree has for a configuration symbol that
// another tree has by another name. Other symbols are not in it.
type symbolMap map[string]string

// symbolNames reads the names that the tree in the folder source has.
func symbolNames(source string, a *arch.Arch) (symbolMap, error) {
	var declared []byte
	for _, name := range declaredIn(a) {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		declared = append(append(declared, '\n'), data...)
	}
	names := symbolMap{}
	for _, all := range renamed {
		for i := len(all) - 1; i >= 0; i-- {
			if !regexp.MustCompile(`(?m)^(menu)?config ` + all[i] + `$`).Match(declared) {
				continue
			}
			for _, name := range all {
				if name != all[i] {
					names[name] = all[i]
				}
			}
			break
		}
	}
	return names, nil
}

// settings are settings "SYMBOL=value" by the tree's own names.
func (names symbolMap) settings(set []string) []string {
	out := make([]string, len(set))
	for i, s := range set {
		name, value, _ := strings.Cut(s, "=")
		if now, ok := names[name]; ok {
			name = now
		}
		out[i] = name + "=" + value
	}
	return out
}

// apply puts settings, which have the tree's own names, into a .config: what it
// says of those symbols by any of their names is taken out. Other symbols that
// it has by another tree's name get the tree's own.
func (names symbolMap) apply(config []byte, set []string) []byte {
	value := map[string]bool{}
	for _, s := range set {
		name, _, _ := strings.Cut(s, "=")
		value[name] = true
	}
	var out []byte
	for line := range bytes.Lines(config) {
		if m := configLine.FindSubmatchIndex(line); m != nil {
			name := string(line[m[2]:m[3]])
			if now, ok := names[name]; ok {
				line = append(append(bytes.Clone(line[:m[2]]), now...), line[m[3]:]...)
				name = now
			}
			if value[name] {
				continue
			}
		}
		out = append(out, line...)
	}
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	for _, s := range set {
		if name, ok := strings.CutSuffix(s, "=n"); ok {
			out = append(out, "# CONFIG_"+name+" is not set\n"...)
		} else {
			out = append(out, "CONFIG_"+s+"\n"...)
		}
	}
	return out
}

// configLine is a line of a .config that is of a symbol.
var configLine = regexp.MustCompile(`^(?:# )?CONFIG_(\w+)(?:=.*| is not set)\s*$`)

// dropped are the settings that a finished .config does not have, each with the
// value that it has in their place.
func dropped(config []byte, set []string) (out []string) {
	for _, s := range set {
		name, want, _ := strings.Cut(s, "=")
		got := "n"
		if m := regexp.MustCompile(`(?m)^CONFIG_` + regexp.QuoteMeta(name) + `=(.*)$`).FindSubmatch(config); m != nil {
			got = string(m[1])
		}
		if got != want {
			out = append(out, fmt.Sprintf("%s (it is %s)", s, got))
		}
	}
	return out
}
