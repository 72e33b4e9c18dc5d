package cli

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"github.com/google/renameio/v2"

	"unlucky/layout"
	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/report"
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

	Templates int `json:"templates"` // by which layouts are linked without lld
}

func prepare(f *flag.FlagSet) *command {
	o := newSetup(f)
	o.moving(f)
	var (
		path   = f.String("o", "", "`file` to write (default NAME.kernel.tar.zst)")
		asJSON = f.Bool("json", false, "print what was written as JSON")
	)
	return &command{
		args: "SCENARIO", min: 1, max: 1, long: true,
		summary:  "build the kernel and write it as one file, for sweep -kernel on other machines",
		examples: []string{"unlucky prepare canary -o canary.kernel.tar.zst"},
		run: func(ctx context.Context, c call) error {
			scenario, err := o.load(c.args)
			if err != nil {
				return err
			}
			if *path == "" {
				*path = scenario.Name + ".kernel.tar.zst"
			}
			b, err := openSession(ctx, scenario, c.scr)
			if err != nil {
				return err
			}
			defer b.Close()
			p := packed{Path: *path, Object: b.Digest, Clang: b.Clang, LLD: b.LLD}
			err = b.pack(ctx, &p, c.scr)
			c.scr.done()
			if err != nil {
				return err
			}
			if *asJSON {
				return json.NewEncoder(c.out).Encode(p)
			}
			needs, proof := "with lld "+p.LLD+" and QEMU", ""
			if p.Templates > 0 {
				needs, proof = "with QEMU", fmt.Sprintf("; so do delta links from %d images in the file, without lld", p.Templates)
			}
			fmt.Fprintf(c.out, "%s: %s, vmlinux.o %.12s\none pass of lld gives the images of link-vmlinux.sh: the baseline, padded, in another order%s\n"+
				"\nnext, on any machine %s, for example:\n  unlucky sweep -kernel %s\n",
				report.Printable(p.Path), humanize.IBytes(uint64(p.Bytes)), p.Object, proof, needs, report.Printable(qemu.Quote([]string{p.Path})))
			return nil
		},
	}
}

// pack writes the session as a kernel file, once it is proven that this links the
// same images, and tells its size.
func (b *session) pack(ctx context.Context, p *packed, scr *screen) error {
	b.By = linker.Script // to compare with
	scenario, err := b.template.Scenario.Marshal()
	if err != nil {
		return err
	}
	initrd, err := os.ReadFile(b.guest.Machine.Initrd)
	if err != nil {
		return err
	}
	file, err := renameio.NewPendingFile(p.Path, renameio.WithTempDir(filepath.Dir(p.Path)), renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer file.Cleanup() // does nothing after the rename
	plans, err := b.Pack(ctx, file, map[string][]byte{packedScenario: scenario, packedInitrd: initrd}, scr.progress)
	if err != nil {
		return err
	}
	unpacked, err := linker.Unpack(ctx, kbuild.CacheDir(), file.Name(), scr.progress)
	if err != nil {
		return err
	}
	defer unpacked.Close()
	unpacked.Sections = b.Sections
	sections, err := b.Layout(ctx)
	if err != nil {
		return err
	}
	scr.progress("comparing its images with those of link-vmlinux.sh", 0, 0)
	if err := b.Prove(ctx, unpacked, append(plans, layout.Text.Plan(1, sections), layout.Shuffle.Plan(1, sections))); err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	p.Bytes, p.Templates = info.Size(), unpacked.Templates()
	return file.CloseAtomicallyReplace()
}
