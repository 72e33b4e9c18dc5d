package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dustin/go-humanize/english"

	"unlucky/autopsy"
	"unlucky/fuzz"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/report"
	"unlucky/seeds"
)

// examined is what autopsy prints.
type examined struct {
	File     string   `json:"file"`
	Scenario string   `json:"scenario"`
	Seed     seeds.ID `json:"seed"`
	Twin     string   `json:"twin"` // the layout that passes; empty where there was none
	fuzz.Autopsy
}

func autopsyCommand(f *flag.FlagSet) *command {
	o := newSetup(f)
	o.packed(f)
	o.trusting(f)
	var (
		twin   = f.String("twin", "", "seed `file` of a layout of the same kernel that passes (default: a twin that the sweep has saved beside it, else the baseline); of a bundle another bundle (default: none)")
		heal   = f.Bool("heal", false, "boot it once more with the damage mended in its memory, and tell whether it passes then")
		asJSON = f.Bool("json", false, "print the result as JSON")
	)
	return &command{
		args: "SEEDFILE|BUNDLE", min: 1, max: 1, long: true,
		summary: "name the damaged code in the memory of a layout's dead kernel",
		examples: []string{
			"unlucky autopsy unlucky.out/kcfi-seal/unexpected-exit/7.yaml",
			"unlucky autopsy unlucky.out/kcfi-seal/unexpected-exit/7.yaml -heal",
			"unlucky autopsy unlucky.out/kcfi-seal/twin-1.yaml     # of a layout that passes",
			"unlucky autopsy kcfi-seal-7.tar.zst -twin kcfi-seal-1.tar.zst",
		},
		run: func(ctx context.Context, c call) error {
			if err := notFolder(c.args[0]); err != nil {
				return err
			}
			packed, err := seeds.IsBundle(c.args[0])
			if err != nil {
				return err
			}
			of := examine
			if packed {
				of = examineBundle
			}
			result, err := of(ctx, c.args[0], *twin, *heal, o, c.scr)
			if err != nil {
				return err
			}
			if *asJSON {
				return json.NewEncoder(c.out).Encode(result)
			}
			next := ""
			if !packed && result.Kind != qemu.Pass {
				next = "unlucky minimize " + qemu.Quote(c.args) + o.again()
			}
			printExamined(c.out, result, next)
			return nil
		},
	}
}

// examine links a saved layout, and one that passes, and looks into the memory of both.
func examine(ctx context.Context, path, twinPath string, heal bool, o *setup, scr *screen) (*examined, error) {
	saved, b, err := openSaved(ctx, path, o, scr)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	twin, err := twinFor(path, twinPath, saved, b.Digest)
	if err != nil {
		return nil, err
	}
	b.By = linker.Script // two links: nothing to save
	image, w, err := b.relink(ctx, saved, scr)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var other linker.Image
	if twin != nil {
		o, w, err := b.relink(ctx, *twin, scr)
		if err != nil {
			return nil, err
		}
		defer w.Close()
		other = o
	} else {
		twin = &seeds.File{Layout: seeds.Baseline}
		w, err := b.NewWorker()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		scr.progress("linking "+twin.Layout.Name(), 0, 0)
		other, err = w.Link(ctx, layout.Plan{})
		scr.done()
		if err != nil {
			return nil, fmt.Errorf("linking %s: %w", twin.Layout.Name(), err)
		}
	}
	return b.autopsy(ctx, path, saved, image, twin.Layout.Name(), other, heal, scr)
}

// examineBundle looks into the memory of what is in a bundle, and into that of what is in
// another, of a layout that passes.
func examineBundle(ctx context.Context, path, twinPath string, heal bool, o *setup, scr *screen) (*examined, error) {
	b, err := unbundle(ctx, path, o, scr)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if twinPath == "" {
		return b.autopsy(ctx, path, b.saved, b.image, "", linker.Image{}, heal, scr)
	}
	if packed, err := seeds.IsBundle(twinPath); err != nil {
		return nil, err
	} else if !packed {
		return nil, usageError{fmt.Errorf("-twin %s: a bundle is compared with another, as it has no kernel to link a layout of", twinPath)}
	}
	twin, err := unbundle(ctx, twinPath, o, scr)
	if err != nil {
		return nil, err
	}
	defer twin.Close()
	if !passes(twin.saved, b.saved) || twin.saved.Digests.Object != b.saved.Digests.Object {
		return nil, fmt.Errorf("-twin %s: it is no layout of the same kernel that passes", twinPath)
	}
	return b.autopsy(ctx, path, b.saved, b.image, twin.saved.Layout.Name(), twin.image, heal, scr)
}

// autopsy looks into the memory of an image and that of its twin, an empty image for none.
func (b *bootable) autopsy(ctx context.Context, path string, saved seeds.File, image linker.Image, name string, twin linker.Image, heal bool, scr *screen) (*examined, error) {
	a, err := b.guest.Autopsy(ctx, image.Path, image.VMLinux, twin.Path, twin.VMLinux, heal, func(step string) { scr.progress(step, 0, 0) })
	scr.done()
	if errors.Is(err, fuzz.ErrTwin) {
		err = host.Hint(err, "-twin FILE names the seed file of a layout that passes; a sweep saves some as twin-N.yaml")
	}
	if err != nil {
		return nil, b.advise(err)
	}
	return &examined{path, saved.Scenario.Name, saved.Layout, name, a}, nil
}

// passes tells whether a saved layout is another one that passes.
func passes(twin, of seeds.File) bool {
	return twin.Kind == qemu.Pass && twin.Digests.Image != of.Digests.Image
}

// twinFor is the layout that passes to compare a saved one with: that of a file, or
// one that the sweep has saved; nil stands for the baseline.
func twinFor(path, twinPath string, saved seeds.File, object string) (*seeds.File, error) {
	if twinPath == "" {
		twins := twinsOf(path, object)
		if i := slices.IndexFunc(twins, func(t seeds.File) bool { return passes(t, saved) }); i >= 0 {
			return &twins[i], nil
		}
		return nil, nil
	}
	twin, err := seeds.Read(twinPath)
	if err == nil && !passes(twin, saved) {
		err = fmt.Errorf("-twin %s: it is no layout that passes, or the same as %s", twinPath, path)
	}
	return &twin, err
}

// intact is what is said where no damage was found.
const intact = report.Intact + ": data, timing, or a CPU's doing"

// printExamined says what was seen, and what to do next, where there is something.
func printExamined(out io.Writer, e *examined, next string) {
	shown := e.Title
	if e.Kind == qemu.Pass {
		shown = "it passes"
	}
	with := "compared with " + e.Twin
	if e.Twin == "" {
		with = "compared with no other layout"
	}
	fmt.Fprintf(out, "%s of %s: %s; %s, in %s\n\n", e.Seed.Name(), report.Printable(e.Scenario), report.Printable(shown), with, english.Plural(e.Boots, "boot", ""))
	switch {
	case len(e.Damage) > 0:
	case e.Twin == "":
		fmt.Fprintln(out, "no branch leads astray; -twin BUNDLE, of a layout that passes, shows more")
		return
	default:
		fmt.Fprintln(out, intact)
		return
	}
	for i, d := range e.Damage {
		printDamage(out, i+1, d)
	}
	if !e.Traced {
		fmt.Fprintf(out, "which of it has run is not known: under KVM nobody sees that (-accel tcg)\n")
	}
	printHealed(out, e.Healed)
	if next != "" {
		fmt.Fprintf(out, "\nnext, for example:\n  %s\n", next)
	}
}

// printHealed says how the image fares with its damage mended.
func printHealed(out io.Writer, h *fuzz.Healed) {
	if h == nil {
		return
	}
	switch mended := strings.Join(h.Mended, ", "); {
	case h.Kind == "":
		fmt.Fprintf(out, "it could not be mended\n")
	case h.Kind == qemu.Pass:
		fmt.Fprintf(out, "mended in memory it passes: %s\n", report.Printable(mended))
	default:
		fmt.Fprintf(out, "mended in memory it still fails (%s): %s\n", report.Printable(h.Title), report.Printable(mended))
	}
	for _, why := range h.Left {
		fmt.Fprintf(out, "not mended: %s\n", report.Printable(why))
	}
}

func printDamage(out io.Writer, n int, d *autopsy.Damage) {
	ran := ""
	switch {
	case d.Ran == nil:
	case *d.Ran:
		ran = ", it has run"
	default:
		ran = ", it has not run"
	}
	fmt.Fprintf(out, "%d. %s+%#x at %#x is %s%s\n", n, report.Printable(d.Function), d.Offset, d.Address, d.Why, ran)
	show := func(what string, c autopsy.Code) {
		fmt.Fprintf(out, "   %-10s%s  %s\n", what, spaced(c.Bytes), report.Printable(c.Asm))
	}
	show("on disk", d.Disk)
	show("in memory", d.Memory)
	if d.Twin != nil {
		show("the twin", *d.Twin)
	}
	if d.Leads != "" {
		leads := "leads to " + report.Printable(d.Leads)
		if d.Crashed {
			leads += ", where the kernel trapped"
		}
		fmt.Fprintf(out, "   %s\n", leads)
	}
	if d.Named {
		fmt.Fprintln(out, "   the console names it")
	}
	if d.Meet != nil {
		fmt.Fprintf(out, "   two tables meet there: %s and %s\n", report.Printable(d.Meet[0].String()), report.Printable(d.Meet[1].String()))
	} else if len(d.Sites) > 0 {
		var all []string
		for _, s := range d.Sites {
			all = append(all, report.Printable(s.String()))
		}
		fmt.Fprintf(out, "   listed by %s\n", strings.Join(all, ", "))
	}
	fmt.Fprintln(out)
}

// spaced puts a space between bytes in hex.
func spaced(hex string) string {
	var b strings.Builder
	for i := 0; i+2 <= len(hex); i += 2 {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(hex[i : i+2])
	}
	return b.String()
}
