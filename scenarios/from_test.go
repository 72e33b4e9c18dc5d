package scenarios

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"gopkg.in/yaml.v3"
)

// TestFrom reads mine.yaml of each testdata/from/*.txtar, with the files beside it.
// Behind them stands the error that it has, or else what Source and Added print:
// go test -run TestFrom -update rewrites those.
func TestFrom(t *testing.T) {
	cases, err := filepath.Glob("testdata/from/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	home, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, golden := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(golden), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			t.Chdir(dir)
			wanted := []string{"error", "source", "added"}
			for _, f := range a.Files {
				if slices.Contains(wanted, f.Name) {
					continue
				}
				if err := os.MkdirAll(filepath.Dir(f.Name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f.Name, f.Data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got := &txtar.Archive{Comment: a.Comment}
			got.Files = slices.DeleteFunc(slices.Clone(a.Files), func(f txtar.File) bool { return slices.Contains(wanted, f.Name) })
			add := func(name string, data []byte) {
				got.Files = append(got.Files, txtar.File{Name: name, Data: []byte(strings.ReplaceAll(string(data), dir, "$DIR"))})
			}
			if s, err := Load("mine.yaml"); err != nil {
				add("error", []byte(err.Error()+"\n"))
			} else {
				source, added := checkPrinted(t, "mine.yaml", s)
				add("source", source)
				add("added", added)
			}
			if *update {
				if err := os.WriteFile(filepath.Join(home, golden), txtar.Format(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(txtar.Format(a)), string(txtar.Format(got))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// checkPrinted holds what is printed of a scenario to be that scenario.
func checkPrinted(t *testing.T, nameOrPath string, s Scenario) (source, added []byte) {
	t.Helper()
	source, err := Source(nameOrPath)
	if err != nil {
		t.Fatal(err)
	}
	if added, err = Added(nameOrPath); err != nil {
		t.Fatal(err)
	}
	for i := range s.Kernel.Patches {
		s.Kernel.Patches[i].File = filepath.Base(s.Kernel.Patches[i].File)
	}
	for what, text := range map[string][]byte{"Source": source, "Added": added} {
		again, err := Parse(text, nameOrPath)
		if err != nil {
			t.Fatalf("%s: %v\n%s", what, err, text)
		}
		for i := range again.Kernel.Patches { // absolute where it is from another folder
			again.Kernel.Patches[i].File = filepath.Base(again.Kernel.Patches[i].File)
		}
		if !reflect.DeepEqual(s, again) {
			t.Errorf("%s is of another scenario (-want +got):\n%s\n%s", what, cmp.Diff(marshalled(t, s), marshalled(t, again)), text)
		}
	}
	if _, err := ParseWhole(source, "source"); err != nil && strings.Contains(err.Error(), "from: not followed") {
		t.Errorf("Source is not resolved:\n%s", source)
	}
	return source, added
}

func marshalled(t *testing.T, s Scenario) string {
	t.Helper()
	text, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestAddedBuiltin: a built-in scenario gives nothing that its parent has.
func TestAddedBuiltin(t *testing.T) {
	for _, s := range Builtin() {
		file, err := builtin.ReadFile("builtin/" + s.Name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if _, added := checkPrinted(t, s.Name, s); s.Name != "cfi-shutdown" { // of which the printing takes some empty lines
			if diff := cmp.Diff(string(file), string(added)); diff != "" {
				t.Errorf("%s (-file +added):\n%s", s.Name, diff)
			}
		}
	}
}

// A scenario inside another document, such as a seed file of a stranger, reads no
// other file.
func TestFromInside(t *testing.T) {
	text := "name: mine\nfrom: boot\nguest: {cpus: 2}\n"
	if _, err := Parse([]byte(text), "mine.yaml"); err != nil {
		t.Fatal(err)
	}
	const want = "from: not followed here: in a seed file or a kernel file a scenario stands whole, so make that anew from the scenario file"
	if _, err := ParseWhole([]byte(text), "scenario.yaml"); err == nil || err.Error() != "scenario.yaml:2: "+want {
		t.Errorf("ParseWhole: %v", err)
	}
	var inside struct{ Scenario Scenario }
	err := yaml.Unmarshal([]byte("scenario:\n  "+strings.ReplaceAll(text, "\n", "\n  ")), &inside)
	if err == nil || err.Error() != "line 3: "+want {
		t.Errorf("inside another document: %v", err)
	}
}
