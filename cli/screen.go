package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"unlucky/report"
)

// screen is standard error: notes, progress and errors. What it prints is in
// lower case, without a full stop; an error is "unlucky: error: ..." and may be
// followed by "unlucky: hint: ..." lines that name the next thing to do.
// Without a terminal, progress is a plain line now and then.
type screen struct {
	mu    sync.Mutex
	out   io.Writer // of lines
	raw   io.Writer // of the bar, which comes to stand where the lines do
	tty   bool
	quiet bool // only errors and hints are printed
	bar   *progressbar.ProgressBar
	step  string
	last  time.Time // of the last plain line of progress
}

// plainEvery is how often progress is told without a terminal: often enough
// to see that it goes on, seldom enough for the log of a night.
const plainEvery = 30 * time.Second

func newScreen(out io.Writer) *screen {
	return &screen{out: colouring(out), raw: out, tty: isTerminal(out)}
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// note prints a line above the progress bar.
func (s *screen) note(format string, a ...any) {
	if !s.quiet {
		s.line(fmt.Sprintf(format, a...))
	}
}

func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bar != nil && s.tty {
		s.bar.Clear()
	}
	fmt.Fprintln(s.out, report.Printable(text))
	if s.bar != nil && s.tty {
		s.bar.RenderBlank()
	}
}

// printer makes what is written to it printable ASCII, as bytes come: what a
// rune is made of may come in two pieces.
type printer struct{ out io.Writer }

func (p printer) Write(b []byte) (int, error) {
	text := make([]byte, 0, len(b))
	for _, c := range b {
		switch {
		case c == '\r':
			continue
		case c != '\n' && c != '\t' && (c < ' ' || c > '~'):
			c = '.'
		}
		text = append(text, c)
	}
	if _, err := p.out.Write(text); err != nil {
		return 0, err
	}
	return len(b), nil
}

// progress is a linker.Progress: it tells how far a step has come.
func (s *screen) progress(step string, done, total int64) {
	if s.quiet {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if step = report.Printable(step); step != s.step {
		s.end()
		s.step, s.last = step, time.Now()
		fmt.Fprintln(s.out, step+" ...")
		if s.tty {
			short, _, _ := strings.Cut(step, " (")
			s.bar = s.newBar(short, total, progressbar.OptionShowCount())
		}
	}
	if s.tty {
		s.bar.Set64(done)
	} else if now := time.Now(); now.Sub(s.last) >= plainEvery && done > 0 {
		s.last = now
		if total > 0 {
			fmt.Fprintf(s.out, "%s: %d %%\n", step, 100*done/total)
		} else {
			fmt.Fprintf(s.out, "%s: %d\n", step, done)
		}
	}
}

// laterThan is how long a step that is mostly short goes on unseen.
const laterThan = 2 * time.Second

// later is the progress of a step that is shown only once it takes long.
func (s *screen) later(step string) func(done, total int) {
	begin := time.Now()
	return func(done, total int) {
		if time.Since(begin) >= laterThan {
			s.progress(step, int64(done), int64(total))
		}
	}
}

func (s *screen) newBar(step string, total int64, more ...progressbar.Option) *progressbar.ProgressBar {
	if total == 0 {
		total = -1
	}
	return progressbar.NewOptions64(total, append([]progressbar.Option{
		progressbar.OptionSetWriter(s.raw),
		progressbar.OptionSetDescription(step),
		progressbar.OptionSetWidth(24),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionSpinnerType(14),
		progressbar.OptionSetPredictTime(total > 0),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetElapsedTime(true),
	}, more...)...)
}

// tally shows how far a sweep is, in figures of its own.
func (s *screen) tally(done, total int, text string) {
	if s.quiet {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.step != "sweep" {
		s.end()
		s.step, s.last = "sweep", time.Now()
		if s.tty {
			s.bar = s.newBar("", int64(total), progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(false))
		}
	}
	if s.tty {
		s.bar.Describe(text)
		s.bar.Set(done)
	} else if now := time.Now(); now.Sub(s.last) >= plainEvery {
		s.last = now
		fmt.Fprintf(s.out, "%d of %d layouts, %s\n", done, total, text)
	}
}

// doing shows what a step of unknown length is at.
func (s *screen) doing(step, text string) {
	if s.quiet {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	text = report.Printable(text)
	if s.step != step {
		s.end()
		s.step, s.last = step, time.Now()
		if s.tty {
			s.bar = s.newBar("", 0)
		}
	}
	if s.tty {
		s.bar.Describe(text)
	} else if now := time.Now(); now.Sub(s.last) >= plainEvery {
		s.last = now
		fmt.Fprintln(s.out, text)
	}
}

// done ends the step in progress and clears its bar.
func (s *screen) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
}

func (s *screen) end() {
	if s.bar != nil {
		s.bar.Finish() // clears it, and ends its spinner
		s.bar = nil
	}
	s.step = ""
}

func (s *screen) error(err error) {
	s.done()
	var usage usageError
	if errors.As(err, &usage) {
		err = usage.error
	}
	s.line(fmt.Sprintf("unlucky: error: %v", err))
}

func (s *screen) hint(text string) { s.line("unlucky: hint: " + text) }
