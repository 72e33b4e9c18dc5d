package seeds

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"unlucky/autopsy"
	"unlucky/layout"
)

// rows is a table of 16-byte steps: f fails, p passes, u is unknown.
func rows(verdicts string) (out []Residue) {
	for i, v := range verdicts {
		r := Residue{Bytes: uint64(i) * 16, Boots: Boots{Boots: 1}}
		switch v {
		case 'f':
			r.Crashes = 1
		case 'u':
			r.Others = 1
		}
		out = append(out, r)
	}
	return out
}

func TestCulprit(t *testing.T) {
	f := func(name string, address uint64) Function {
		return Function{Name: name, Section: ".text." + name, Address: address, Moved: true}
	}
	touching := f("b", 0x104b)
	touching.Touching = true
	fixed := Function{Name: "b", Address: 0x2030}
	for _, test := range []struct {
		functions []Function
		together  bool
		modulus   uint64
		table     string
		want      string
	}{
		{[]Function{f("a", 0x1030)}, false, 64, "fppp", "crashes when `a` is at 0x30 mod 0x40; moved alone by 16 bytes it passes"},
		{[]Function{f("a", 0x1030)}, false, 64, "ffpp", "crashes when `a` is at 0x0 or 0x30 mod 0x40; moved alone by 32 bytes it passes"},
		{[]Function{f("a", 0x1000)}, false, 128, "ffffuppp", "crashes when `a` is at 0x0 to 0x30 mod 0x80; moved alone by 80 bytes it passes"},
		{[]Function{f("a", 0x1020), touching}, false, 64, "fppf", "crashes when `a` at 0x10 or 0x20 is directly followed by `b` at 0xb or 0x3b mod 0x40; moved by 16 bytes they pass"},
		{[]Function{f("a", 0x1020), touching}, false, 64, "ffff", "crashes when `a` is directly followed by `b`"},
		{[]Function{f("a", 0x1030), fixed}, true, 64, "fppp", "crashes when `a` and `b` are at the same residue mod 0x40; 16 bytes nearer they pass"},
		{[]Function{f("a", 0x1000), fixed}, true, 64, "fppp", "crashes when `a` and `b` are 0x30 bytes apart mod 0x40; 16 bytes nearer they pass"},
		{[]Function{f("a", 0x1000), fixed}, false, 64, "fppp", "crashes when `a` at 0x0 and `b` at 0x30 mod 0x40; `a` moved alone by 16 bytes it passes"},
		{[]Function{f("a", 0x1000), fixed}, true, 64, "ffpp", "crashes when `a` and `b` are 0x30 bytes apart or 0x20 bytes apart mod 0x40; 32 bytes nearer they pass"},
		{[]Function{f("a", 0x1000)}, false, 64, "ffff", "crashes wherever `a` is, if held apart from its neighbours"},
		{[]Function{f("a", 0x1000)}, false, 0, "", "crashes by the address of `a`"},
	} {
		c := Culprit{Functions: test.functions, Together: test.together, Residues: rows(test.table)}
		if test.modulus > 0 {
			c.SetModulus(test.modulus)
		}
		if got := c.String(); got != test.want {
			t.Errorf("%s\nwant\n%s", got, test.want)
		}
	}
}

func TestSettle(t *testing.T) {
	c := Culprit{Residues: rows("fpfpfpfu")}
	c.SetModulus(32)
	want := []Residue{{0, Boots{Boots: 4, Crashes: 4}}, {16, Boots{Boots: 4, Others: 1}}}
	if d := cmp.Diff(want, c.Residues); d != "" {
		t.Error(d)
	}
}

// exampleMinimized has every key in it.
func exampleMinimized(title string) *Minimized {
	f := func(name string, address uint64) Function {
		return Function{Name: name, Section: ".text." + name, Address: address, Moved: true}
	}
	touching := f("b", 0xffffffff8100005b)
	touching.Touching = true
	ran := true
	return &Minimized{
		Complete: true, Boots: 56, Failing: Boots{Boots: 19, Crashes: 18}, Needed: 2, Passing: "the baseline", Match: "in f",
		Faces: map[string]int{title: 19},
		Culprits: []Culprit{
			{Functions: []Function{f("a", 0xffffffff81000030), touching}, Modulus: 64, Alone: Boots{Boots: 1, Crashes: 1}, Residues: rows("fppu")},
			{Functions: []Function{f("c", 0xffffffff81002000), {Name: "d", Section: ".text.d", Address: 0xffffffff81003000}}, Modulus: 32, Together: true,
				Alone: Boots{Boots: 1, Crashes: 1}, Elsewhere: Boots{Boots: 2, Crashes: 1, Others: 1}, Residues: rows("fp")},
		},
		Autopsy: &Autopsy{Twin: "seed 1", Damage: []Damage{{Culprit: 1, Damage: autopsy.Damage{
			Function: "a", Offset: 0x39, Why: autopsy.Astray, Disk: autopsy.Code{Bytes: "c3", Asm: "retq"}, Memory: autopsy.Code{Bytes: "cc", Asm: "int3"},
			Sites: []autopsy.Site{{Table: "return", Bytes: 6}, {Table: "seal-hash", Bytes: 4, For: "b"}}, Leads: "c-0x260", Ran: &ran, Crashed: true,
		}}}},
		Switches: []Switch{{"cfi=off", Boots{Boots: 1}}, {"nosmp", Boots{Boots: 1, Crashes: 1}}},
		Twin:     &layout.Plan{Paddings: []layout.Padding{{Section: ".text.a", Bytes: 32}}},
		Notes:    []string{"not minimal: the limit of boots or of time is reached"},
	}
}

// A file that is in no store names itself.
func TestWrite(t *testing.T) {
	f := examples(t)["minimized"]
	path := filepath.Join(t.TempDir(), "mine.yaml")
	if err := f.Write(path, []byte("console\n")); err != nil {
		t.Fatal(err)
	}
	back, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(f, back, same); d != "" {
		t.Error(d)
	}
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "unlucky replay mine.yaml\n") {
		t.Errorf("%s, %v", text, err)
	}
	if console, err := os.ReadFile(ConsolePath(path)); err != nil || string(console) != "console\n" {
		t.Errorf("console %q, %v", console, err)
	}
}
