package qemu

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// A guest is stopped, looked at and written to, and runs on as it was written; one that
// ends before it is stopped says so.
func TestDebugger(t *testing.T) {
	kernel := buildGuest(t)
	f, err := elf.Open(kernel)
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.Symbols()
	if f.Close(); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == "stack_top" })
	if i < 0 {
		t.Fatal("no stack_top")
	}
	info := symbols[i].Value - 4 // the first that it pushes: where its struct hvm_start_info is
	rewrite := func(d *Debugger) error {
		if err := errors.Join(d.Watch(info, 4), d.Continue()); err != nil {
			return err
		}
		at, err := d.Read(info, 4)
		if err != nil {
			return err
		}
		const commandLine = 24
		if at, err = d.Read(uint64(binary.LittleEndian.Uint32(at))+commandLine, 8); err != nil {
			return err
		}
		const good = "all good\\n\\t\x00"
		if err := d.Write(binary.LittleEndian.Uint64(at), []byte(good)); err != nil {
			return err
		}
		return d.Continue()
	}
	for _, test := range []struct {
		name string
		do   func(*Debugger) error
		want Kind
	}{
		{"written to", rewrite, Pass},
		{"only let go", (*Debugger).Continue, Crash},
		{"never there", func(d *Debugger) error { return errors.Join(d.Watch(info+0x10000, 4), d.Continue()) }, Crash},
	} {
		d, err := NewDebugger()
		if err != nil {
			t.Fatal(err)
		}
		m := guest(kernel, "tcg", `not so good\n\t`, t.TempDir())
		m.Debugger = d
		done := make(chan error, 1)
		go func() { done <- test.do(d) }()
		r, err := m.Boot(context.Background(), Expect{Pass: passRE, Limit: far})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, ErrEnded) {
			t.Errorf("%s: %v, want that it has ended", test.name, err)
		}
		if r.Kind != test.want {
			t.Errorf("%s: %s %s, want %s; console %q, %s", test.name, r.Kind, r.Title, test.want, r.Console, r.Stderr)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
