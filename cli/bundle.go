package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"unlucky/fuzz"
	"unlucky/host"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/report"
	"unlucky/seeds"
)

func bundle(f *flag.FlagSet) *command {
	o := new(setup)
	o.source(f)
	o.packed(f)
	o.trusting(f)
	var (
		path   = f.String("o", "", "`file` of the bundle (default: SCENARIO-SEED.tar.zst in this folder)")
		asJSON = f.Bool("json", false, "print what is in it as JSON")
	)
	return &command{
		args: "SEEDFILE", min: 1, max: 1, long: true,
		summary:  "put all that shows the crash with QEMU alone into one file, with a text to mail",
		examples: []string{"unlucky bundle unlucky.out/kcfi-seal/unexpected-exit/7.yaml"},
		run: func(ctx context.Context, c call) error {
			b, err := relink(ctx, c.args[0], o, c.scr)
			if err != nil {
				return err
			}
			defer b.Close()
			saved := b.saved
			if b.template.Initrd != saved.Digests.Initrd {
				return &host.HintError{
					Err:  fmt.Errorf("the initrd of %s is another one than was saved (%.12s, was %.12s): another busybox?", c.args[0], b.template.Initrd, saved.Digests.Initrd),
					Hint: "bundle it where it was found, or find it again here: a sweep of the same seed saves what is here",
				}
			}
			if *path == "" {
				*path = seeds.BundleName(saved) + ".tar.zst"
			}
			console, err := consoleOf(ctx, c.args[0], b, c.scr)
			if err != nil {
				return err
			}
			min, err := minimizedBeside(c.args[0], saved, c.scr)
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "unlucky-bundle-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			debug, err := b.debugImage(ctx, c.scr)
			if err != nil {
				return err
			}
			if err := fillBundle(dir, saved, min, console, b.image, debug, b.guest.Machine.Initrd); err != nil {
				return err
			}
			packed, err := seeds.Pack(ctx, dir, saved, *path, func(done, total int64) {
				c.scr.progress("packing "+filepath.Base(*path), done, total)
			})
			c.scr.done()
			if err != nil {
				return err
			}
			if *asJSON {
				return json.NewEncoder(c.out).Encode(packed)
			}
			printPacked(c.out, saved, packed)
			return nil
		},
	}
}

// consoleOf is the console of a saved seed. Where there is none beside it, as in a
// mail, the image is booted until it shows what was saved, and its console is put
// there: the next bundle is the same.
func consoleOf(ctx context.Context, path string, b *replayable, scr *screen) ([]byte, error) {
	saved := b.saved
	console, err := seeds.Console(path)
	if console != nil || err != nil {
		return console, err
	}
	scr.note("there is no console beside %s: booting it", path)
	const patience = 10 // boots of a flaky crash
	want := saved.Title
	if saved.Kind == qemu.Pass {
		want = string(qemu.Pass)
	}
	for range patience {
		r, err := fuzz.Replay(ctx, saved, b.guest, b.image.Path, 1, func(r qemu.Result) { console = r.Console })
		if err != nil {
			return nil, b.advise(err)
		}
		if r.Titles[want] == 1 {
			return console, seeds.WriteConsole(path, console)
		}
	}
	return nil, &host.HintError{
		Err:  fmt.Errorf("%s did not show %q in %d boots", saved.Layout.Name(), want, patience),
		Hint: fmt.Sprintf("unlucky replay %s tells what it shows", path),
	}
}

// minimizedBeside is the answer that minimize has put beside a seed file; nil if
// there is none.
func minimizedBeside(path string, saved seeds.File, scr *screen) (*seeds.File, error) {
	path = seeds.MinimizedPath(path)
	min, err := seeds.Read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case min.Minimized == nil || min.Layout != saved.Layout || min.Digests.Object != saved.Digests.Object:
		scr.note("%s is left out: it is not about %s of this vmlinux.o", path, saved.Layout.Name())
		return nil, nil
	}
	return &min, nil
}

// fillBundle puts the members of a bundle into dir. debug is an image with debug
// information; empty where there is no other.
func fillBundle(dir string, saved seeds.File, min *seeds.File, console []byte, image linker.Image, debug, initrd string) error {
	if _, _, err := keepImage(dir, saved.Scenario.Kernel.Image, image, initrd); err != nil {
		return err
	}
	if err := saved.Write(filepath.Join(dir, seeds.SeedFile), console); err != nil {
		return err
	}
	answered := min
	if saved.Minimized != nil {
		answered = &saved
	}
	if min != nil {
		if err := min.Write(filepath.Join(dir, seeds.MinFile), nil); err != nil {
			return err
		}
	}
	l, err := report.NewLetter(dir, debug, saved, answered, console)
	if err != nil {
		return err
	}
	for _, name := range []string{seeds.ReportFile, seeds.RunFile} {
		text, err := l.Text(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// contents says what the members of a bundle are for, but for the image that is made
// of vmlinux.
var contents = map[string]string{
	seeds.ReportFile:  "a mail or bug report, ready to send",
	seeds.RunFile:     "boots it as it was booted, with nothing of unlucky",
	seeds.SeedFile:    "the seed file",
	seeds.MinFile:     "what minimize has made of it",
	seeds.ConsoleFile: "the console of a boot that shows it",
	seeds.MapFile:     "the addresses of the image's symbols",
	seeds.InitrdFile:  "its user space",
	seeds.VMLinuxFile: "the image, for QEMU and for debuggers",
}

func printPacked(out io.Writer, saved seeds.File, p seeds.Packed) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s: %s of %s, %s\n\n", p.Path, saved.Layout.Name(), saved.Scenario.Name, report.Seen(saved))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, m := range p.Members {
		fmt.Fprintf(w, "%s\t  %s\n", humanize.IBytes(uint64(m.Bytes)), fmt.Sprintf("%-13s %s", m.Name, cmp.Or(contents[m.Name], "the image that is booted")))
	}
	w.Flush()
	name := seeds.BundleName(saved)
	fmt.Fprintf(&b, "\n%s, sha256 %s\n", humanize.IBytes(uint64(p.Bytes)), p.SHA256)
	fmt.Fprintf(&b, "next, for example:\n  unlucky replay %s%s\n  tar -xOf %s %s/%s\n", p.Path, report.TrustFlag(saved.Scenario), p.Path, name, seeds.ReportFile)
	io.WriteString(out, report.Printable(b.String()))
}

// unbundle makes ready to boot what is in a bundle.
func unbundle(ctx context.Context, path string, o *setup, scr *screen) (_ *replayable, err error) {
	if o.linux != "" || o.build != "" {
		return nil, usageError{fmt.Errorf("-linux and -build: %s has its kernel in it; unpack it, and replay the %s in it to link it again", path, seeds.SeedFile)}
	}
	dir, err := os.MkdirTemp("", "unlucky-replay-")
	if err != nil {
		return nil, err
	}
	r := &replayable{bootable: bootable{free: func() error { return os.RemoveAll(dir) }}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	step := scr.later("unpacking " + filepath.Base(path))
	r.saved, err = seeds.Unpack(ctx, path, dir, func(done, total int64) { step(int(done), int(total)) })
	scr.done()
	if err != nil {
		return nil, err
	}
	r.explicit = r.saved
	s := r.saved.Scenario
	s.Guest.Accel = r.saved.Accel
	if err := o.apply(&s); err != nil {
		return nil, err
	}
	if err := o.checkGuest(path, r.saved.Scenario); err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	r.guest = fuzz.NewGuest(s, at(seeds.InitrdFile))
	r.template = seeds.Template{Scenario: s, Object: r.saved.Digests.Object, Initrd: r.saved.Digests.Initrd, Tools: r.saved.Tools}
	if r.template.Tools.QEMU, err = r.guest.Machine.Version(ctx); err != nil {
		return nil, err
	}
	if err := r.accelerate(o.accel, scr); err != nil {
		return nil, err
	}
	r.image = linker.Image{
		Path: at(s.Kernel.Image), VMLinux: at(seeds.VMLinuxFile), SystemMap: at(seeds.MapFile),
	}
	return r, nil
}
