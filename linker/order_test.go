package linker

import (
	"bytes"
	"debug/elf"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// Sections take each other's places within their group only.
func TestOrder(t *testing.T) {
	sections := []layout.Section{{Name: ".head.text", Output: ".text", Index: 1, Size: 16}}
	for i, name := range []string{"a", "b", "..fixed", "c", "d", "e", "hot"} {
		sections = append(sections, layout.Section{Name: ".text." + name, Output: ".text", Moves: name[0] != '.', Index: 10 + i, Address: uint64(16 * (i + 1)), Size: 16, Align: 16})
	}
	sections[7].Index = 2 // the linker script begins something new with it
	layout.SetGroups(sections)
	var groups []int
	for _, s := range sections {
		groups = append(groups, s.Group)
	}
	if fmt.Sprint(groups) != "[0 1 1 0 2 2 2 3]" {
		t.Fatalf("groups %v", groups)
	}
	for _, test := range []struct{ order, want string }{
		{"", "[0 1 2 3 4 5 6 7]"},
		{"b a", "[0 2 1 3 4 5 6 7]"},
		{"e c", "[0 1 2 3 6 5 4 7]"},
		{"e b c a", "[0 2 1 3 6 5 4 7]"},
		{"d e", "[0 1 2 3 4 5 6 7]"},
		{"e c d", "[0 1 2 3 6 4 5 7]"},
		{"b b", ".text.b is in it twice"},
		{"..fixed a", ".text...fixed: this kernel has no such section"},
		{"a nosuch", ".text.nosuch: this kernel has no such section"},
	} {
		var names []string
		for _, name := range strings.Fields(test.order) {
			names = append(names, ".text."+name)
		}
		order, err := layout.Order(sections, names)
		if got := fmt.Sprint(order, err); !strings.Contains(got, test.want) {
			t.Errorf("%q: %s, want %s", test.order, got, test.want)
		}
	}
}

// An object whose sections have other indices is the same object: linked, its
// contentsOf come in the new order, each with its symbol, and each call goes
// where it went. That holds with more sections than a symbol's own field can
// count, and nothing is left when the order is the old one again.
func TestArrange(t *testing.T) {
	for _, functions := range []int{300, 70_000} {
		t.Run(fmt.Sprint(functions), func(t *testing.T) {
			var source strings.Builder
			for i := range functions {
				group := `"`
				if i%7 == 3 {
					group = fmt.Sprintf(`G",@progbits,group%d,comdat`, i)
				}
				fmt.Fprintf(&source, ".section .text.f%d,\"ax%s\nf%d: call f%d\n.long %d\n", i, group, i, (i+1)%functions, i)
			}
			path := compile(t, "__asm__("+asmString(source.String())+");\n", "--target=x86_64-linux-gnu")
			o, err := openObject(path)
			if err != nil {
				t.Fatal(err)
			}
			old := make([]int, functions)
			for i := range old {
				old[i] = o.index[fmt.Sprintf(".text.f%d", i)]
			}
			order := rand.New(rand.NewPCG(1, 1)).Perm(functions)
			slots := map[int]int{}
			for place, i := range order {
				if place != i {
					slots[old[i]] = old[place]
				}
			}
			p, err := o.copyTo(filepath.Join(t.TempDir(), "x.o"))
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if err := p.edit(edit{slots: slots, padding: map[int]uint64{old[5]: 64}}); err != nil {
				t.Fatal(err)
			}
			image, sections := linkPlain(t, p.file.Name())
			place := 0
			for _, s := range sections {
				if !layout.PerFunction(s.Name) {
					continue
				}
				name := fmt.Sprint("f", order[place])
				if s.Name != ".text."+name || s.Function != name {
					t.Fatalf("at place %d: %s with %s, want %s", place, s.Name, s.Function, name)
				}
				if want := uint64(9); order[place] == 5 && s.Size != want+64 || order[place] != 5 && s.Size != want {
					t.Fatalf("%s has %d bytes", s.Name, s.Size)
				}
				place++
			}
			if place != functions {
				t.Fatalf("%d functions, want %d", place, functions)
			}
			// Each call, e8 and a distance, goes to the next function by number.
			at := map[string]uint64{}
			for _, s := range sections {
				at[s.Function] = s.Address
			}
			text := image.Section(".text")
			code, err := text.Data()
			if err != nil {
				t.Fatal(err)
			}
			for i := range functions {
				from := at[fmt.Sprint("f", i)]
				call := code[from-text.Addr:]
				to := from + 5 + uint64(int64(int32(le32(call[1:]))))
				if call[0] != 0xe8 || to != at[fmt.Sprint("f", (i+1)%functions)] || int(le32(call[5:])) != i {
					t.Fatalf("f%d: % x calls %#x", i, call[:9], to)
				}
			}
			if err := p.edit(edit{}); err != nil {
				t.Fatal(err)
			}
			before, err1 := os.ReadFile(path)
			after, err2 := os.ReadFile(p.file.Name())
			if err1 != nil || err2 != nil || !bytes.Equal(before, after) {
				t.Errorf("in the old order again it is not the same file (%v, %v)", err1, err2)
			}
		})
	}
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// linkPlain links an object without a linker script; functions move.
func linkPlain(t *testing.T, path string, flags ...string) (*elf.File, []layout.Section) {
	t.Helper()
	return linkMoving(t, "", path, flags...)
}

// linkMoving is linkPlain where which sections move, as kernel.sections says.
func linkMoving(t *testing.T, which, path string, flags ...string) (*elf.File, []layout.Section) {
	t.Helper()
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	argv := append([]string{filepath.Join(tools.Dir, "ld.lld"), "-e", "0", "-Map=map", "-o", "out", path}, flags...)
	if _, err := host.Output(t.Context(), dir, host.Environment(tools.PATH()), argv...); err != nil {
		t.Fatal(err)
	}
	image, err := elf.Open(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	linkMap, err := os.Open(filepath.Join(dir, "map"))
	if err != nil {
		t.Fatal(err)
	}
	defer linkMap.Close()
	layout, err := readLayout(linkMap, path, image, which)
	if err != nil {
		t.Fatal(err)
	}
	return image, layout
}

// A kernel in another order is the one that lld makes under --shuffle-sections,
// has its functions where they are computed to be, and after the first such one
// all orders are linked in one pass.
func TestLinkOrder(t *testing.T) {
	k, notes := tinyKernel(t, "")
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for i := range sections {
		if s := sections[len(sections)-1-i]; s.Group > 0 {
			order = append(order, s.Name)
		}
	}
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	theirs := func() map[string]uint64 {
		if err := w.takeObject(edit{}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.script(t.Context(), nil, nil, "--shuffle-sections=.text.[!.]*=-1"); err != nil {
			t.Fatal(err)
		}
		image, err := elf.Open(w.vmlinux())
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		symbols, err := image.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		at := map[string]uint64{}
		for _, s := range symbols {
			at[s.Name] = s.Value
		}
		return at
	}()
	link := func(plan layout.Plan) (image Image, digest string) {
		t.Helper()
		image, err := w.Link(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		digest = digestOf(t, image)
		if err := image.Remove(); err != nil {
			t.Fatal(err)
		}
		want, err := layout.Place(sections, plan)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for i, a := range image.Addresses {
			if a == 0 || sections[i].Output != ".text" {
				continue
			}
			n++
			if a != want[i] {
				t.Fatalf("%s is at %#x, planned at %#x", sections[i].Name, a, want[i])
			}
		}
		if n < 300 {
			t.Fatalf("%d functions are known", n)
		}
		return image, digest
	}
	reversed, _ := link(layout.Plan{Order: order})
	for i, a := range reversed.Addresses {
		if s := sections[i]; a != 0 && s.Group > 0 && theirs[s.Function] != a+s.Entry {
			t.Fatalf("%s is at %#x, lld has it at %#x", s.Function, a+s.Entry, theirs[s.Function])
		}
	}
	if k.onePass.proven[padded] || !k.onePass.proven[ordered] || len(*notes) > 0 {
		t.Errorf("after the first layout of another order: %+v; notes %q", k.onePass.proven, *notes)
	}
	movable := slices.IndexFunc(sections, func(s layout.Section) bool { return s.Group > 0 }) + 3
	var plans []layout.Plan
	for n := range uint64(4) {
		plans = append(plans, layout.Plan{Order: order[n:], Paddings: []layout.Padding{{Section: sections[movable].Name, Bytes: 16 * n}}})
	}
	script, err := os.ReadFile(k.Script())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(k.Script()); err != nil { // all orders are linked without it
		t.Fatal(err)
	}
	var short []string
	for _, p := range plans {
		_, digest := link(p)
		short = append(short, digest)
	}
	if err := os.WriteFile(k.Script(), script, 0o755); err != nil {
		t.Fatal(err)
	}
	k.onePass.how = nil
	for n, p := range plans {
		if _, full := link(p); full != short[n] {
			t.Errorf("one pass gives %.12s, the script %.12s", short[n], full)
		}
	}
}
