package kbuild

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"unlucky/arch"
)

// A symbol that was renamed is set by the name that the tree has, whichever of
// them the scenario, its configuration or a config target uses.
func TestRenamed(t *testing.T) {
	names := func(generic, x86 string) symbolMap {
		t.Helper()
		dir := t.TempDir()
		for file, text := range map[string]string{"arch/Kconfig": generic, "arch/x86/Kconfig": x86} {
			path := filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		m, err := symbolNames(dir, arch.X86_64)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	old := names("config CFI_CLANG\n\tbool\n", "config CPU_SRSO\n\tbool\nconfig RETHUNKS\n")
	newer := names("config CFI\n\tbool\n\nconfig CFI_CLANG\n\tbool\n\ttransitional\n", "menuconfig MITIGATION_SRSO\n")
	for _, test := range []struct {
		what, config, set string
		names             symbolMap
		want              string
	}{
		{"a target's, new tree", "CONFIG_A=y\n# CONFIG_CFI is not set\n", "CFI_CLANG=y", newer, "CONFIG_A=y\nCONFIG_CFI=y\n"},
		{"both names", "CONFIG_CFI_CLANG=y\nCONFIG_CFI=y\nCONFIG_CFI_PERMISSIVE=y\n", "CFI=n", newer, "CONFIG_CFI_PERMISSIVE=y\n# CONFIG_CFI is not set\n"},
		{"new name, old tree", "# CONFIG_CFI_CLANG is not set\n", "CFI=y MITIGATION_SRSO=n", old, "CONFIG_CFI_CLANG=y\n# CONFIG_CPU_SRSO is not set\n"},
		{"a text's own", "# a comment: CONFIG_CFI_CLANG\nCONFIG_CFI_CLANG=y\nCONFIG_NAME=\"CONFIG_CFI_CLANG=y\"", "", newer,
			"# a comment: CONFIG_CFI_CLANG\nCONFIG_CFI=y\nCONFIG_NAME=\"CONFIG_CFI_CLANG=y\"\n"},
		{"neither is declared", "# CONFIG_RETHUNK is not set\n", "RETHUNK=y", old, "CONFIG_RETHUNK=y\n"},
	} {
		got := string(test.names.apply([]byte(test.config), test.names.settings(strings.Fields(test.set))))
		if got != test.want {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
	}
}

func TestDropped(t *testing.T) {
	config := []byte("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x y\"\nCONFIG_D=16\n")
	if got := dropped(config, []string{"A=y", "B=n", "NOT_THERE=n", `C="x y"`, "D=16"}); got != nil {
		t.Error(got)
	}
	got := dropped(config, []string{"A=n", "B=y", "D=8"})
	if strings.Join(got, ", ") != "A=n (it is y), B=y (it is n), D=8 (it is 16)" {
		t.Error(got)
	}
}
