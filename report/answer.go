package report

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"unlucky/layout"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// maxListed is how many paddings a report lists; the file has them all.
const maxListed = 8

// Answer says what decides, as one would put it into a mail.
func Answer(f *seeds.File) string {
	var b bytes.Buffer
	m := f.Minimized
	fmt.Fprintf(&b, "%s of %s, minimized in %d boots\n\n", f.Layout.Name(), f.Scenario.Name, m.Boots)
	switch len(m.Culprits) {
	case 0:
		what := "no few " + scenarios.Moving(f.Scenario.Kernel.Sections) + " decide"
		if !m.Complete {
			what = "not decided within the limit"
		}
		fmt.Fprintf(&b, "%s; the smallest plan so far that fails has %s\n", what, changes(*f.Plan, f.Scenario.Kernel.Sections))
	case 1:
		fmt.Fprintf(&b, "%s\n", m.Culprits[0])
	default:
		fmt.Fprintf(&b, "%d culprits, each of which is enough:\n", len(m.Culprits))
		for i, c := range m.Culprits {
			fmt.Fprintf(&b, "%2d. %s\n", i+1, c)
		}
	}
	printMemory(&b, m)
	for i, c := range m.Culprits {
		fmt.Fprintln(&b)
		if len(m.Culprits) > 1 {
			fmt.Fprintf(&b, "%d. ", i+1)
		}
		printTable(&b, c, m.Passing)
	}
	if m.Twin != nil {
		printPlan(&b, f, m)
	}
	if len(m.Switches) > 0 {
		fmt.Fprintf(&b, "\nwith one switch more on the kernel command line:\n")
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, s := range m.Switches {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Append, s.Verdict(), ofBoots(s.Boots))
		}
		w.Flush()
	}
	fmt.Fprintf(&b, "\nfaces met, in boots:\n")
	titles := slices.Sorted(maps.Keys(m.Faces))
	slices.SortStableFunc(titles, func(x, y string) int { return m.Faces[y] - m.Faces[x] })
	for _, t := range titles {
		fmt.Fprintf(&b, "  %4d  %s\n", m.Faces[t], t)
	}
	if m.Failing.Crashes < m.Failing.Boots {
		passes := 1 - float64(m.Failing.Crashes)/float64(m.Failing.Boots)
		fmt.Fprintf(&b, "\nflaky: the layouts that fail do so in %d of %d boots; a pass stands on %d boots or more, and is wrong with a chance of %.2g %% or less\n",
			m.Failing.Crashes, m.Failing.Boots, m.Needed, 100*math.Pow(passes, float64(m.Needed)))
	}
	for _, note := range m.Notes {
		fmt.Fprintf(&b, "\n%s\n", note)
	}
	return spaces.ReplaceAllString(b.String(), "")
}

// printMemory prints what the memory of the dead kernel has shown.
func printMemory(out io.Writer, m *seeds.Minimized) {
	if m.Autopsy == nil {
		return
	}
	if len(m.Autopsy.Damage) == 0 {
		fmt.Fprintf(out, "\n%s, by that of %s\n", Intact, m.Autopsy.Twin)
		return
	}
	fmt.Fprintf(out, "\nin its memory, by that of %s:\n", m.Autopsy.Twin)
	for i, d := range m.Autopsy.Damage {
		if i == maxListed {
			fmt.Fprintf(out, "and %d more\n", len(m.Autopsy.Damage)-i)
			break
		}
		of := ""
		if d.Culprit > 0 && len(m.Culprits) > 1 {
			of = fmt.Sprintf(" (culprit %d)", d.Culprit)
		}
		fmt.Fprintf(out, "%2d. %s%s\n", i+1, d, of)
	}
}

// Intact is what is said of a memory with no damage.
const Intact = "the code in its memory is intact"

// spaces are those that tables leave at the ends of lines.
var spaces = regexp.MustCompile(`(?m) +$`)

// changes is how much a plan changes, in words, where such sections move.
func changes(p layout.Plan, sections string) string {
	text := fmt.Sprintf("%d paddings", len(p.Paddings))
	if len(p.Paddings) == 1 {
		text = "1 padding"
	}
	if len(p.Order) > 0 {
		text += fmt.Sprintf(" and %d %s out of place", len(p.Order), scenarios.Moving(sections))
	}
	return text
}

func ofBoots(b seeds.Boots) string {
	return fmt.Sprintf("%d of %d boots fail", b.Crashes, b.Boots)
}

// printTable prints how a culprit fares at each residue.
func printTable(out io.Writer, c seeds.Culprit, passing string) {
	fmt.Fprintf(out, "alone, all else as in %s: %s", passing, ofBoots(c.Alone))
	if c.Elsewhere.Boots > 0 {
		fmt.Fprintf(out, "; with all else changed: %s", ofBoots(c.Elsewhere))
	}
	fmt.Fprintln(out)
	if c.Modulus == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "  moved by")
	for _, f := range c.Functions {
		if f.Moved {
			fmt.Fprintf(w, "\t%s mod %#x", f.Name, c.Modulus)
		}
	}
	fmt.Fprintln(w, "\t\t")
	for i := 0; i < len(c.Residues); i++ {
		// A long table shows where it changes.
		first := i
		for len(c.Residues) > 32 && !c.Bounded && i+1 < len(c.Residues) && c.Residues[i+1].Verdict() == c.Residues[first].Verdict() {
			i++
		}
		var sum seeds.Boots
		for _, r := range c.Residues[first : i+1] {
			sum.Boots, sum.Crashes, sum.Others = sum.Boots+r.Boots.Boots, sum.Crashes+r.Crashes, sum.Others+r.Others
		}
		span := func(at func(uint64) string) string {
			text := at(c.Residues[first].Bytes)
			if i > first {
				text += " to " + at(c.Residues[i].Bytes)
			}
			return text
		}
		fmt.Fprintf(w, "  %s", span(func(n uint64) string { return fmt.Sprint(n) }))
		for _, f := range c.Functions {
			if f.Moved {
				fmt.Fprintf(w, "\t%s", span(func(n uint64) string { return fmt.Sprintf("%#x", (f.Address+n)%c.Modulus) }))
			}
		}
		fmt.Fprintf(w, "\t%s\t%s\n", c.Residues[first].Verdict(), ofBoots(sum))
	}
	w.Flush()
	if c.Bounded {
		fmt.Fprintf(out, "  of %d residues %d were booted: by powers of two, and towards the borders of where it fails\n", c.Modulus/cmp.Or(c.Step, layout.Step), len(c.Residues))
	}
}

// printPlan prints the smallest failing plan beside its passing twin.
func printPlan(out io.Writer, f *seeds.File, m *seeds.Minimized) {
	twin := map[string]uint64{}
	for _, p := range m.Twin.Paddings {
		twin[p.Section] = p.Bytes
	}
	var differ []layout.Padding
	for _, p := range f.Plan.Paddings {
		if twin[p.Section] != p.Bytes {
			differ = append(differ, p)
		}
		delete(twin, p.Section)
	}
	for _, p := range m.Twin.Paddings {
		if _, ok := twin[p.Section]; ok {
			differ = append(differ, layout.Padding{Section: p.Section})
		}
	}
	for _, p := range m.Twin.Paddings {
		twin[p.Section] = p.Bytes
	}
	var moved []string
	if !slices.Equal(f.Plan.Order, m.Twin.Order) {
		moved = f.Plan.Order
	}
	if len(differ) > maxListed && len(m.Culprits) == 0 {
		return // most of the plan, which says nothing
	}
	what := "the smallest failing plan found"
	if m.Passing != seeds.Baseline.Name() && len(m.Culprits) > 0 {
		what = "the first culprit alone, all else as in " + m.Passing + ": a plan that" // not the smallest: the baseline fails
	}
	fmt.Fprintf(out, "\n%s has %s; its passing twin differs in %s:\n", what, changes(*f.Plan, f.Scenario.Kernel.Sections), changes(layout.Plan{Paddings: differ, Order: moved}, f.Scenario.Kernel.Sections))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for i, p := range differ {
		if i == maxListed {
			fmt.Fprintf(w, "  ...\t\t\t\n")
			break
		}
		if i == 0 {
			fmt.Fprintf(w, "  fails\tpasses\t\n")
		}
		fmt.Fprintf(w, "  %d\t%d\t", p.Bytes, twin[p.Section])
		fmt.Fprintf(w, "  bytes before %s\n", p.Section)
	}
	w.Flush()
	if moved == nil {
		return
	}
	decide := slices.DeleteFunc(slices.Clone(moved), func(section string) bool {
		return !slices.ContainsFunc(m.Culprits, func(c seeds.Culprit) bool {
			return slices.ContainsFunc(c.Functions, func(f seeds.Function) bool { return f.Section == section })
		})
	})
	if len(decide) > 0 {
		text := "out of place is"
		if len(decide) > 1 {
			text = "out of place are"
		}
		fmt.Fprintf(out, "  %s %s", text, strings.Join(decide, " and "))
		if others := len(moved) - len(decide); others > 0 {
			fmt.Fprintf(out, "; %d others give up their places", others)
		}
		fmt.Fprintln(out)
		return
	}
	more := ""
	if len(moved) > maxListed {
		moved, more = moved[:maxListed], " ..."
	}
	fmt.Fprintf(out, "  these take each other's places, in this order:\n    %s%s\n", strings.Join(moved, " "), more)
}
