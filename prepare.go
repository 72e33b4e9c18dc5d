package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"github.com/google/renameio/v2"

	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// What a kernel file holds beside the kernel.
const (
	packedScenario = "scenario.yaml"
	packedInitrd   = "initrd"
)

// packed is what prepare prints.
type packed struct {
	Path   string `json:"path"`
	Bytes  int64  `json:"bytes"`
	Object string `json:"object"` // digest of vmlinux.o
	Clang  string `json:"clang"`
	LLD    string `json:"lld"`
}

func prepareFile(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("prepare", flag.ContinueOnError)
	o := overrides(f)
	var (
		path   = f.String("o", "", "`file` to write (default NAME.kernel.tar.zst)")
		asJSON = f.Bool("json", false, "print what was written as JSON")
	)
	rest, err := parse(f, args, out, "prepare SCENARIO [flags]", 1, 1)
	if err != nil {
		return err
	}
	scenario, err := o.load(rest)
	if err != nil {
		return err
	}
	if *path == "" {
		*path = scenario.Name + ".kernel.tar.zst"
	}
	scr := newScreen(os.Stderr)
	b, err := prepare(ctx, scenario, scr)
	if err != nil {
		return err
	}
	defer b.Close()
	p := packed{Path: *path, Object: b.Digest, Clang: b.Clang, LLD: b.LLD}
	p.Bytes, err = b.pack(ctx, *path, scr)
	scr.done()
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(out).Encode(p)
	}
	fmt.Fprintf(out, "%s: %s, vmlinux.o %.12s\none pass of lld gives the images of link-vmlinux.sh: the baseline, padded, in another order\n"+
		"\nnext, on any machine with lld %s and QEMU, for example:\n  unlucky sweep -kernel %s\n",
		printable(p.Path), humanize.IBytes(uint64(p.Bytes)), p.Object, p.LLD, printable(qemu.Quote([]string{p.Path})))
	return nil
}

// pack writes the rig as a kernel file, once it is proven that this links the
// same images, and returns its size in bytes.
func (b *rig) pack(ctx context.Context, path string, scr *screen) (int64, error) {
	b.FullScript = true // to compare with
	scenario, err := b.saved.Scenario.Marshal()
	if err != nil {
		return 0, err
	}
	initrd, err := os.ReadFile(b.guest.Machine.Initrd)
	if err != nil {
		return 0, err
	}
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o644))
	if err != nil {
		return 0, err
	}
	defer file.Cleanup() // does nothing after the rename
	if err := b.Pack(ctx, file, map[string][]byte{packedScenario: scenario, packedInitrd: initrd}, scr.progress); err != nil {
		return 0, err
	}
	unpacked, err := linker.Unpack(ctx, cacheDir(), file.Name(), scr.progress)
	if err != nil {
		return 0, err
	}
	defer unpacked.Close()
	sections, err := b.Layout(ctx)
	if err != nil {
		return 0, err
	}
	scr.progress("comparing its images with those of link-vmlinux.sh", 0, 0)
	if err := b.Prove(ctx, unpacked, []layout.Plan{layout.Text.Plan(1, sections), layout.Shuffle.Plan(1, sections)}); err != nil {
		return 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), file.CloseAtomicallyReplace()
}

// packed adds the flag that takes a kernel file in place of a build.
func (o *override) packed(f *flag.FlagSet) {
	f.StringVar(&o.kernel, "kernel", "", "kernel `file`, as unlucky prepare writes it, to use instead of a build: it takes lld and QEMU and nothing else. "+
		"A program in it is run: trust it as you trust a kernel tree")
}

// again is what a command must have added to use the same kernel file.
func (o *override) again() string {
	if o.kernel == "" {
		return ""
	}
	return " -kernel " + qemu.Quote([]string{o.kernel})
}

// prepare is prepare for a scenario or, with -kernel, for the one that the kernel
// file has.
func (o *override) prepare(ctx context.Context, s scenarios.Scenario, scr *screen) (*rig, error) {
	if o.kernel == "" {
		return prepare(ctx, s, scr)
	}
	return o.open(ctx, nil, scr)
}

// open makes a rig of a kernel file, for its own scenario or that of a saved
// layout.
func (o *override) open(ctx context.Context, saved *scenarios.Scenario, scr *screen) (*rig, error) {
	kernel, err := linker.Unpack(ctx, cacheDir(), o.kernel, scr.progress)
	scr.done()
	if err != nil {
		return nil, err
	}
	s, initrd, err := o.contents(kernel, saved)
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	return newRig(ctx, kernel, s, initrd, scr)
}

// contents are the scenario and the initrd of a kernel file, or those of a saved
// layout.
func (o *override) contents(kernel *linker.Kernel, saved *scenarios.Scenario) (s scenarios.Scenario, initrd []byte, err error) {
	data, err := kernel.More(packedScenario)
	if err != nil {
		return s, nil, err
	}
	if s, err = scenarios.ParseWhole(data, o.kernel+": "+packedScenario); err != nil {
		return s, nil, err
	}
	if initrd, err = kernel.More(packedInitrd); err != nil {
		return s, nil, err
	}
	if saved == nil {
		err = o.apply(&s)
		return s, initrd, err
	}
	if s.Guest.Init != saved.Guest.Init || s.Guest.Rootfs != saved.Guest.Rootfs {
		initrd, err = initrdOf(saved.Guest)
	}
	return *saved, initrd, err
}
