package evidence

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kballard/go-shellquote"

	"unlucky/qemu"
	"unlucky/seeds"
)

// seedNames are the names of the seed files that a sweep saves.
var seedNames = regexp.MustCompile(`\A(twin-)?(?:baseline|[0-9]+)\.yaml\z`)

// lost is a sweep whose journal, or a part of it, is lost: its saved seeds say
// under which header they were found, and all of themselves. Of the layouts that
// passed they know next to nothing.
type lost struct {
	dir     string
	header  seeds.Header
	records []seeds.Record
}

// storeOf is the folder of the sweep that a seed file of such a name lies in.
func storeOf(path string) string {
	dir := filepath.Dir(path)
	if strings.HasPrefix(filepath.Base(path), "twin-") {
		return dir
	}
	return filepath.Dir(dir)
}

// readLost reads the saved seeds of the folder of a sweep. The error names those
// that cannot be read, and comes beside the others.
func readLost(dir string, paths []string) (all []lost, failed error) {
	for _, path := range paths {
		f, err := seeds.Read(path)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if f.Plan != nil { // somebody's copy of a minimized one
			continue
		}
		console, err := os.ReadFile(seeds.ConsolePath(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return nil, err
		}
		h := headerOf(f)
		i := slices.IndexFunc(all, func(l lost) bool { return l.header.Same(h) })
		if i < 0 {
			i = len(all)
			all = append(all, lost{dir: dir, header: h})
		}
		all[i].records = append(all[i].records, seeds.Record{
			Layout: f.Layout, Verdict: seeds.Verdict{Kind: f.Kind, Title: f.Title, Titles: f.Titles, Found: Shows(f.Scenario.Verdict, qemu.Result{Kind: f.Kind, Title: f.Title, Console: console}), Boots: f.Boots, Crashes: f.Crashes}, Plan: f.Digests.Plan, Image: f.Digests.Image, Path: rel, At: f.At,
		})
	}
	return all, failed
}

// headerOf is that of the sweep that has saved a seed.
func headerOf(f seeds.File) seeds.Header {
	argv, err := shellquote.Split(f.Command)
	if err != nil { // no shell takes it: it was edited
		argv = []string{f.Command}
	}
	h := seeds.Header{
		Scenario: f.Scenario.Name, Strategy: f.Strategy, Accel: f.Accel, QEMU: f.Tools.QEMU, LLD: f.Tools.LLD,
		Object: f.Digests.Object, Initrd: f.Digests.Initrd, Argv: seeds.Digest(argv...), Command: f.Command, Sections: f.Scenario.Kernel.Sections,
	}
	h.Rules, h.Verdict = seeds.Rules(f.Scenario.Verdict, time.Duration(f.Scenario.Guest.Limit), f.Scenario.Guest.Infra.Regexp)
	return h
}
