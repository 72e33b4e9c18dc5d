package seeds

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/layout"
)

var object = strings.Repeat("0123456789abcdef", 4)

func someSections() []layout.Section {
	return []layout.Section{
		{Name: ".head.text", Output: ".text", Address: 0xffffffff81000000, Size: 955, Align: 16, Function: "start", Functions: 6},
		{Name: ".text.f#2", Output: ".text", Address: 1<<64 - 16, Size: 16, Align: 16, Moves: true, Function: "f \"größe\"", Entry: 11, Functions: 1},
		{Output: ".data", Segment: -1, Align: 0},
	}
}

func TestBaseline(t *testing.T) {
	s, err := Open(t.TempDir(), "tiny")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadBaseline(s.Dir(), object); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "layout-0123456789ab.json.gz") {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := s.SaveBaseline(object, someSections()); err != nil {
		t.Fatal(err)
	}
	got, err := ReadBaseline(s.Dir(), object)
	if err != nil || !slices.Equal(got, someSections()) {
		t.Errorf("%+v, %v", got, err)
	}
	if f := files(t, s.Dir()); !slices.Equal(f, []string{"layout-0123456789ab.json.gz"}) {
		t.Errorf("the folder holds %q", f)
	}

	// Once it is there, it is written no more.
	path := BaselinePath(s.Dir(), object)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveBaseline(object, someSections()); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written again, %v", err)
	}
	// A file of the first version, which says nothing of the linker script, is
	// read, and written anew when the kernel says the rest.
	var old bytes.Buffer
	w := gzip.NewWriter(&old)
	fmt.Fprintf(w, `{"unlucky":1,"object":%q,"sections":[{"name":"a","output":".text","segment":0,"address":4096,"size":8,"align":1,"text":true,"function":"a","entry":0,"functions":1,"index":1,"group":0},
		{"name":"b","output":".text","segment":0,"address":4112,"size":8,"align":1,"text":true,"function":"b","entry":0,"functions":1,"index":2,"group":0},
		{"name":"c","output":".text","segment":0,"address":5000,"size":8,"align":1,"text":false,"function":"c","entry":0,"functions":1,"index":3,"group":0}]}`, object)
	if err := errors.Join(w.Close(), os.WriteFile(path, old.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	got, err = ReadBaseline(s.Dir(), object)
	if err != nil || got[0].Alignment() != 1 || got[1].ScriptAlign != 16 || got[1].Pin != 0 || got[2].Pin != 3 {
		t.Errorf("the first version: %+v, %v", got, err)
	}
	got[1].ScriptAlign = 8
	if err := s.SaveBaseline(object, got); err != nil {
		t.Error(err)
	}
	if now, err := ReadBaseline(s.Dir(), object); err != nil || !slices.Equal(now, got) {
		t.Errorf("written anew: %+v, %v", now, err)
	}
	got[1].ScriptAlign = 16
	if err := s.SaveBaseline(object, got); err == nil || !strings.Contains(err.Error(), "laid out otherwise") {
		t.Errorf("another linker script: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveBaseline(object, someSections()); err != nil {
		t.Fatal(err)
	}
	other := someSections()
	other[1].Address += 16
	if err := s.SaveBaseline(object, other); err == nil || !strings.Contains(err.Error(), path+": this kernel's baseline is laid out otherwise") {
		t.Errorf("another layout: %v", err)
	}
}

func TestBaselineDamaged(t *testing.T) {
	s, err := Open(t.TempDir(), "tiny")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveBaseline(object, someSections()); err != nil {
		t.Fatal(err)
	}
	path := BaselinePath(s.Dir(), object)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zip := func(text string) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		fmt.Fprint(w, text)
		w.Close()
		return b.Bytes()
	}
	flipped := slices.Clone(good)
	flipped[len(flipped)/2] ^= 1
	section := `{"name":".text.f","output":".text","address":16,"size":16,"align":%d,"text":true}`
	whole := `{"unlucky":1,"object":"` + object + `","sections":[` + section + `]}`
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "not a layout that unlucky has saved"},
		{"garbage", []byte("hello, world"), "not a layout that unlucky has saved"},
		{"a bit flipped", flipped, ""},
		{"not JSON", zip("hello"), "invalid character"},
		{"unknown key", zip(`{"unlucky":1,"colour":"red"}`), `unknown field "colour"`},
		{"more behind it", zip(fmt.Sprintf(whole, 16) + "{}"), "something follows"},
		{"another kernel", zip(strings.Replace(fmt.Sprintf(whole, 16), object, "ffff", 1)), "another vmlinux.o (ffff)"},
		{"alignment", zip(fmt.Sprintf(whole, 24)), "24, is no power of two"},
		{"the script's alignment", zip(strings.Replace(fmt.Sprintf(whole, 16), `"text"`, `"script-align":3,"text"`, 1)), "3, is no power of two"},
		{"a place behind it", zip(strings.Replace(fmt.Sprintf(whole, 16), `"text"`, `"pin":2,"text"`, 1)), "hangs on section 2"},
		{"newer", zip(`{"unlucky":3,"sections":7}`), "written by a newer unlucky"},
		{"null", zip("null"), "there is no layout in it"},
	} {
		if err := os.WriteFile(path, test.data, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{s.SaveBaseline(object, someSections()), func() error { _, err := ReadBaseline(s.Dir(), object); return err }()} {
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "remove it") {
				t.Errorf("%s: error %v", test.name, err)
			}
		}
	}
	for n := range len(good) {
		if err := os.WriteFile(path, good[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadBaseline(s.Dir(), object); err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(good), err)
		}
	}
}

func TestBaselineUnwritable(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tiny"), nil, 0o644); err != nil { // in the folder's place
		t.Fatal(err)
	}
	s, err := Open(dir, "tiny")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveBaseline(object, someSections()); err == nil || !strings.Contains(err.Error(), s.Dir()) {
		t.Errorf("error %v", err)
	}
}
