package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// TestPatched: code that is patched wrongly, in three ways, is named first by an autopsy,
// as code that has run, and no function beside those that the addresses say; where data is
// at fault the code is intact.
func TestPatched(t *testing.T) {
	needKernels(t)
	needBuilds(t)
	const scenario = "testdata/patched/patched.yaml"
	for _, bug := range []struct {
		name    string
		predict func(k *kernelText, address map[string]uint64) []string
	}{
		{"torn", tornBranches},
		{"ftrace", wrongCalls},
		{"scribble", scribbled},
		{"data", func(*kernelText, map[string]uint64) []string { return nil }},
	} {
		t.Run(bug.name, func(t *testing.T) {
			s, err := scenarios.Load(scenario)
			if err != nil {
				t.Fatal(err)
			}
			s.Guest.Append += " unlucky=" + bug.name
			fails, passes := 0, 0 // the last of each
			for _, l := range lookInto(t, s, 37, 48, func(vmlinux string) ([]string, error) {
				k, address, err := readKernelText(vmlinux)
				if err != nil {
					return nil, err
				}
				return bug.predict(k, address), k.err
			}) {
				t.Log(l)
				for _, d := range l.damage {
					t.Log(d)
					if !slices.Contains(l.want, d.Function) {
						t.Errorf("seed %d: %s, want only %v", l.seed, d, l.want)
					}
				}
				_, ran := l.names()
				switch {
				case l.passed():
					passes = l.seed
					if ran != nil {
						t.Errorf("seed %d passes, and of the damage ran %v", l.seed, ran)
					}
				case bug.name == "data":
					fails = l.seed
				default:
					fails = l.seed
					if len(l.damage) == 0 || !l.damage[0].Executed() {
						t.Errorf("seed %d fails, and no damaged code has run: %v", l.seed, l.damage)
					}
				}
			}
			if fails == 0 || passes == 0 {
				t.Fatal("want layouts that fail, and ones that pass")
			}
			dir := t.TempDir()
			var r evidence.Report
			for _, seed := range []int{passes, fails} {
				// The second one fails alone, as the baseline may: then that is the exit status.
				_, out := unlucky(t, "sweep", scenario, "-json", "-append", "unlucky="+bug.name, "-seeds", fmt.Sprintf("%d:%[1]d", seed), "-accel", "tcg", "-o", dir)
				r = evidence.Report{}
				if err := json.Unmarshal([]byte(out), &r); err != nil {
					t.Fatal(err)
				}
			}
			if r.Finds() == 0 {
				t.Fatal(count(r))
			}
			a := autopsyJSON(t, filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path))
			if data := bug.name == "data"; a.Kind == qemu.Pass || data != (len(a.Damage) == 0) || !data && !a.Damage[0].Executed() {
				t.Errorf("%s %q: %v", a.Kind, a.Title, a.Damage)
			}
		})
	}
}

// tornBranches are the functions in which a static branch of five bytes crosses the end of a
// page where it is torn: its first byte is written by itself.
func tornBranches(k *kernelText, address map[string]uint64) (names []string) {
	for at := address["__start___jump_table"]; at < address["__stop___jump_table"]; at += 16 {
		if site := at + relative(k.at(at, 4)); site%4096 >= 4092 && site%4096 < 4095 {
			names = append(names, k.function(site).Name)
		}
	}
	return names
}

// wrongCalls are the traced functions of which the call is at the wrong residue.
func wrongCalls(k *kernelText, address map[string]uint64) (names []string) {
	for at := address["__start_mcount_loc"]; at < address["__stop_mcount_loc"]; at += 8 {
		site := binary.LittleEndian.Uint64(k.at(at, 8))
		if traced, _ := filepath.Match("traced_*", k.function(site).Name); traced && site&0xf0 == 0x30 {
			names = append(names, k.function(site).Name)
		}
	}
	return names
}

// scribbled is the function that has what begins the cache line behind scribble_slot.
func scribbled(k *kernelText, address map[string]uint64) (names []string) {
	from := layout.AlignUp(address["scribble_slot"]+48, 64)
	for _, f := range k.functions {
		if f.Value < from+8 && from < f.Value+f.Size {
			names = append(names, f.Name)
		}
	}
	return names
}
