package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/google/renameio/v2"

	"unlucky/fuzz/evidence"
	"unlucky/qemu"
	"unlucky/report"
)

func reportCommand(f *flag.FlagSet) *command {
	to := f.String("o", "report.html", "`file` to write; an earlier report is replaced, another file is not")
	return &command{
		args: "DIR...", min: 1, max: math.MaxInt,
		summary:  "write a page about sweeps: findings, coverage, a map of suspects",
		examples: []string{"unlucky report unlucky.out -o report.html"},
		run: func(ctx context.Context, c call) error {
			if err := report.MayReplace(*to); err != nil {
				return err
			}
			var notes []string
			all, failed := evidence.ReadResults(c.args, func(format string, a ...any) {
				c.scr.note(format, a...)
				notes = append(notes, fmt.Sprintf(format, a...))
			})
			if len(all) == 0 {
				return failed
			}
			p, err := report.NewPage(ctx, all, c.scr.later)
			c.scr.done()
			if p == nil {
				return err
			}
			if failed = errors.Join(failed, err); failed != nil {
				notes = append(notes, strings.Split(failed.Error(), "\n")...)
			}
			p.Notes, p.Version = notes, programVersion()
			page, err := p.HTML()
			if err != nil {
				return err
			}
			if err := renameio.WriteFile(*to, page, 0o644, renameio.WithTempDir(filepath.Dir(*to))); err != nil {
				return errors.Join(failed, err)
			}
			text := fmt.Sprintf("%s: %s, %s, %s\n\nnext, for example:\n  xdg-open %s\n", *to, english.Plural(len(p.Sweeps), "sweep", ""),
				english.Plural(p.Titles(), "title", ""), humanize.Bytes(uint64(len(page))), qemu.Quote([]string{*to}))
			if next := p.Next(); next != "" {
				text += "  " + next + "\n"
			}
			io.WriteString(c.out, report.Printable(text))
			return failed
		},
	}
}
