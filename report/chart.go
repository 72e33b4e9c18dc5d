package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"

	"unlucky/fuzz/evidence"
	"unlucky/qemu"
)

// chart is a stacked bar chart of verdicts, by time, or by seeds where a
// verdict has no time.
type chart struct {
	Timed    bool
	Each     string // what a bar stands for: "10 minutes", "5 layouts"
	From, To string
	Max      int
	Width    int // bars
	Bars     []bar

	begin, end time.Time
}

type bar struct {
	X     int
	Title string
	Parts []part // from the bottom
}

type part struct {
	Class string
	Y, N  int // verdicts
}

// barSpans are what a bar may stand for, in seconds.
var barSpans = []int64{1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 4 * 3600, 12 * 3600, 24 * 3600}

// classOf is the class of a verdict, in the chart and its legend.
func classOf(t evidence.Tried) string {
	switch {
	case t.Found:
		return "unlucky"
	case t.Kind == qemu.Pass:
		return "pass"
	case t.Kind == qemu.LinkFailed:
		return "nolink"
	case t.Kind == qemu.Duplicate:
		return "duplicate"
	}
	return "other"
}

var classes = []struct{ Class, Name string }{
	{"unlucky", "unlucky"}, {"other", "failed otherwise"}, {"nolink", "does not link"},
	{"duplicate", "the layout of another seed"}, {"pass", "passed"},
}

func newChart(tried []evidence.Tried) (c chart) {
	if len(tried) == 0 {
		return c
	}
	byTime := func(a, b evidence.Tried) int { return a.At.Compare(b.At) }
	c.Timed = !slices.ContainsFunc(tried, func(t evidence.Tried) bool { return t.At.IsZero() })
	var index func(i int, t evidence.Tried) int // of the bar
	var label func(x int) string
	if c.Timed {
		c.begin, c.end = slices.MinFunc(tried, byTime).At, slices.MaxFunc(tried, byTime).At
		first, last := c.begin.Unix(), c.end.Unix()
		const day = 24 * 3600
		span := ((last-first)/(maxBars-2)/day + 1) * day
		if i := slices.IndexFunc(barSpans, func(s int64) bool { return last/s-first/s < maxBars }); i >= 0 {
			span = barSpans[i]
		}
		c.Each = inWords(span)
		c.Width = int(last/span-first/span) + 1
		index = func(_ int, t evidence.Tried) int { return int(t.At.Unix()/span - first/span) }
		label = func(x int) string {
			return time.Unix((first/span+int64(x))*span, 0).UTC().Format("2006-01-02 15:04:05") + " UTC"
		}
		c.From, c.To = label(0), label(c.Width)
	} else {
		each := (len(tried) + maxBars - 1) / maxBars
		c.Each = english.Plural(each, "layout", "")
		c.Width = (len(tried) + each - 1) / each
		index = func(i int, _ evidence.Tried) int { return i / each }
		label = func(x int) string {
			a, b := tried[x*each], tried[min((x+1)*each, len(tried))-1]
			if a.Layout == b.Layout {
				return a.Layout.Name()
			}
			return a.Layout.Name() + " to " + b.Layout.String()
		}
		c.From, c.To = tried[0].Layout.Name(), tried[len(tried)-1].Layout.Name()
	}
	counts := make([]map[string]int, c.Width)
	for i, t := range tried {
		x := index(i, t)
		if counts[x] == nil {
			counts[x] = map[string]int{}
		}
		counts[x][classOf(t)]++
	}
	for x, count := range counts {
		b := bar{X: x}
		var words []string
		y := 0
		for _, k := range classes {
			if n := count[k.Class]; n > 0 {
				b.Parts = append(b.Parts, part{k.Class, y, n})
				words = append(words, fmt.Sprintf("%d %s", n, k.Name))
				y += n
			}
		}
		if y == 0 {
			continue
		}
		b.Title = label(x) + ": " + strings.Join(words, ", ")
		c.Max = max(c.Max, y)
		c.Bars = append(c.Bars, b)
	}
	return c
}

// inWords is a span of seconds.
func inWords(seconds int64) string {
	for _, unit := range []struct {
		seconds int64
		name    string
	}{{24 * 3600, "day"}, {3600, "hour"}, {60, "minute"}} {
		if seconds%unit.seconds == 0 {
			return english.Plural(int(seconds/unit.seconds), unit.name, "")
		}
	}
	return english.Plural(int(seconds), "second", "")
}
