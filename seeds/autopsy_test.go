package seeds

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An autopsy comes back as it was written, and what is no autopsy is refused by name.
func TestAutopsy(t *testing.T) {
	a := exampleMinimized("t").Autopsy
	path := AutopsyPath(filepath.Join(t.TempDir(), "14.yaml"))
	if err := a.Write(path); err != nil {
		t.Fatal(err)
	}
	back, err := ReadAutopsy(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(a, back, same); d != "" {
		t.Error(d)
	}
	if want := "a+0x39 is astray"; back.Cause() != want {
		t.Errorf("cause %q, want %q", back.Cause(), want)
	}
	if back.Damage[0].Crashed, back.Damage[0].Ran = false, nil; back.Cause() != "" {
		t.Errorf("cause %q of what has not run", back.Cause())
	}
	if cause := (*Autopsy)(nil).Cause(); cause != "" {
		t.Errorf("cause %q of none", cause)
	}
	for name, text := range map[string]string{"newer": `{"twin":"seed 1","damage":[],"colour":1}`, "long": strings.Repeat(" ", maxAutopsy+1), "empty": ""} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadAutopsy(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
