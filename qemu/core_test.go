package qemu

import (
	"bytes"
	"context"
	"debug/elf"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// However a guest ends, its memory is in a core that its owner alone may read, and the
// verdict is what it is without.
func TestCore(t *testing.T) {
	kernel := buildGuest(t)
	path := filepath.Join(t.TempDir(), "core")
	if err := os.WriteFile(path, []byte("older"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, append string
		limit        time.Duration
		kind         Kind
	}{
		{"pass", `all good\n\t`, far, Pass},
		{"reset", `some text\n\t`, far, Crash},
		{"hang", `some text\n\h`, 2 * time.Second, Hang},
		{"crash", oopsText + `\h`, far, Crash},
	} {
		core, err := NewCore(path)
		if err != nil {
			t.Fatal(err)
		}
		m := guest(kernel, "tcg", string(bytes.ReplaceAll([]byte(test.append), []byte("\n"), []byte(`\n`))), t.TempDir())
		m.Core = core
		r, err := m.Boot(context.Background(), Expect{Pass: passRE, Limit: test.limit})
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind != test.kind {
			t.Errorf("%s: %s %s, want %s; %s", test.name, r.Kind, r.Title, test.kind, r.Stderr)
		}
		if err := core.Close(); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", test.name, info.Mode(), err)
		}
		f, err := elf.Open(path)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		notes, found := 0, false
		for _, p := range f.Progs {
			if p.Type == elf.PT_NOTE {
				notes++
			}
			data, err := io.ReadAll(p.Open())
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			found = found || bytes.Contains(data, []byte(m.Append))
		}
		f.Close()
		if f.Type != elf.ET_CORE || notes == 0 || !found {
			t.Errorf("%s: an ELF file of type %v with %d notes, in which the command line is: %v", test.name, f.Type, notes, found)
		}
	}
}

// A guest that QEMU cannot run leaves no core, and that is said.
func TestNoCore(t *testing.T) {
	core, err := NewCore(filepath.Join(t.TempDir(), "core"))
	if err != nil {
		t.Fatal(err)
	}
	m := guest(filepath.Join(t.TempDir(), "none"), "tcg", "", t.TempDir())
	m.Core = core
	if r, err := m.Boot(context.Background(), Expect{Pass: passRE, Limit: far}); err != nil || r.Kind != Infra {
		t.Errorf("%s, %v", r.Kind, err)
	}
	if err := core.Close(); err == nil {
		t.Error("a core of nothing")
	}
}
