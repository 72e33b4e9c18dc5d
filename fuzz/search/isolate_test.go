package search_test

import (
	"context"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"unlucky/fuzz/search"
	"unlucky/layout"
)

var update = flag.Bool("update", false, "write the transcripts anew")

// holds evaluates an expression such as f[3] && (f[4] || !t[9]): function 3 is
// at its failing residue, function 9 touches the one before it.
func holds(t *testing.T, e ast.Expr, on, touch func(int) bool) bool {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return holds(t, e.X, on, touch)
	case *ast.UnaryExpr:
		return !holds(t, e.X, on, touch)
	case *ast.BinaryExpr:
		if e.Op == token.LAND {
			return holds(t, e.X, on, touch) && holds(t, e.Y, on, touch)
		}
		return holds(t, e.X, on, touch) || holds(t, e.Y, on, touch)
	case *ast.IndexExpr:
		n, err := strconv.Atoi(e.Index.(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if e.X.(*ast.Ident).Name == "t" {
			return touch(n)
		}
		return on(n)
	case *ast.Ident:
		return e.Name == "true"
	}
	t.Fatalf("no expression: %T", e)
	return false
}

// bug is a made-up layout bug and what isolating it has asked.
type bug struct {
	About     string   `yaml:"about"`
	Functions int      `yaml:"functions"`
	Width     int      `yaml:"width"`
	Fails     string   `yaml:"fails"`
	Unknown   string   `yaml:"unknown,omitempty"`
	Rate      int      `yaml:"rate,omitempty"` // per cent of the boots in which it shows; 0 for all
	Boots     int      `yaml:"boots,omitempty"`
	Gaps      []int    `yaml:"gaps,flow,omitempty"`  // functions that do not touch the one before them
	First     [][]int  `yaml:"first,flow,omitempty"` // sets of functions to begin with
	Next      [][]int  `yaml:"next,flow,omitempty"`  // sets that are likely to be culprits
	Asked     []string `yaml:"asked"`
	Found     []string `yaml:"found"`
	Error     string   `yaml:"error,omitempty"`
}

func TestIsolation(t *testing.T) {
	files, err := filepath.Glob("testdata/isolate/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want bug
			if err := yaml.Unmarshal(data, &want); err != nil {
				t.Fatal(err)
			}
			got := want
			isolateBug(t, &got)
			text, err := yaml.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(string(data), string(text)); d != "" && !*update {
				t.Error(d)
			}
		})
	}
}

func isolateBug(t *testing.T, b *bug) {
	parse := func(text string) ast.Expr {
		if text == "" {
			text = "false"
		}
		e, err := parser.ParseExpr(text)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	fails, unknown := parse(b.Fails), parse(b.Unknown)
	random := rand.New(rand.NewPCG(1, 2))
	touches := func(f int) bool { return !slices.Contains(b.Gaps, f) }
	b.Asked, b.Found, b.Error = nil, nil, ""
	s := &search.Isolation{
		N: b.Functions, Width: b.Width, Touch: touches, Left: func(int) {}, First: b.First,
		Ask: func(_ context.Context, sure bool, choices ...layout.Choice) ([]search.Answer, error) {
			var answers []search.Answer
			for _, c := range choices {
				on := func(f int) bool { return c.On[f] }
				touch := func(f int) bool { return touches(f) && c.On[f] && c.On[f-1] && !c.Open[f] }
				a := search.Passes
				switch {
				case holds(t, unknown, on, touch):
					a = search.Unknown
				case holds(t, fails, on, touch):
					boots := max(1, b.Boots)
					if sure {
						boots *= 2
					}
					for range boots {
						if b.Rate == 0 || random.IntN(100) < b.Rate {
							a = search.Fails
						}
					}
				}
				answers = append(answers, a)
				b.Asked = append(b.Asked, fmt.Sprintf("%s: %s", c, a))
			}
			return answers, nil
		},
	}
	if b.Next != nil {
		s.Next = func(layout.Choice) [][]int { return b.Next }
	}
	found, err := s.Culprits(t.Context())
	for _, c := range found {
		b.Found = append(b.Found, fmt.Sprintf("functions %v touching %v", c.Functions, c.Touching))
	}
	if err != nil {
		b.Error = err.Error()
	}
}

// Where a search begins changes how much it asks, and not what it finds: whatever
// is suspected, rightly or not.
func TestIsolationFirst(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	files, err := filepath.Glob("testdata/isolate/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	compared, fewer := 0, 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var want bug
		if err := yaml.Unmarshal(data, &want); err != nil {
			t.Fatal(err)
		}
		if want.Rate > 0 || want.Error != "" {
			continue // what it finds is a matter of luck, or of where it is stopped
		}
		for n := range 40 {
			got := want
			got.First = nil
			for range 1 + random.IntN(3) {
				first := random.IntN(want.Functions)
				if n%2 == 0 { // about a culprit
					fields := strings.FieldsFunc(want.Found[0], func(r rune) bool { return r < '0' || r > '9' })
					if first, err = strconv.Atoi(fields[random.IntN(len(fields))]); err != nil {
						t.Fatal(err)
					}
				}
				var set []int
				for f := max(0, first-random.IntN(8)); f <= min(first+random.IntN(8), want.Functions-1); f++ {
					set = append(set, f)
				}
				got.First = append(got.First, set)
			}
			if got.Next = nil; n%4 < 2 {
				got.Next = got.First
			}
			isolateBug(t, &got)
			compared++
			if len(got.Asked) < len(want.Asked) {
				fewer++
			}
			if !slices.Equal(got.Found, want.Found) || got.Error != want.Error {
				t.Errorf("%s, beginning with %v: %q, %s; want %q", file, got.First, got.Found, got.Error, want.Found)
			}
		}
	}
	if compared < 200 || fewer < compared/4 {
		t.Errorf("of %d searches %d asked less", compared, fewer)
	}
}

// Shrinking a plan whose failure is a matter of distances.
func TestShrink(t *testing.T) {
	sum := func(paddings []layout.Padding, from, to string) (n uint64) {
		for _, p := range paddings {
			if from <= p.Section && p.Section < to {
				n += p.Bytes
			}
		}
		return n
	}
	for _, test := range []struct {
		name  string
		fails func([]layout.Padding) bool
		want  string
	}{
		{"one padding", func(p []layout.Padding) bool { return sum(p, "f37", "f38") > 0 }, "[{f37 16}]"},
		{"two paddings", func(p []layout.Padding) bool { return sum(p, "f10", "f11") > 0 && sum(p, "f90", "f91") > 0 }, "[{f10 16} {f90 16}]"},
		// 31 paddings of 16 bytes before f30, of which no single one matters.
		{"an address", func(p []layout.Padding) bool { return sum(p, "f00", "f30") == 480 }, "[{f29 480}]"},
		{"everything", func(p []layout.Padding) bool { return len(p) == 100 }, ""},
	} {
		var all []layout.Padding
		for i := range 100 {
			all = append(all, layout.Padding{Section: fmt.Sprintf("f%02d", i), Bytes: 16})
		}
		asked := 0
		ask := func(_ context.Context, offers ...[]layout.Padding) (answers []search.Answer, err error) {
			for _, o := range offers {
				asked++
				a := search.Passes
				if test.fails(o) {
					a = search.Fails
				}
				answers = append(answers, a)
			}
			return answers, nil
		}
		got, err := search.Shrink(t.Context(), all, ask)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d questions", test.name, asked)
		if text := fmt.Sprint(got); test.want != "" && text != test.want || !test.fails(got) {
			t.Errorf("%s: %s, want %s", test.name, text, test.want)
		}
		// At the limit, the best so far.
		calls := 0
		got, err = search.Shrink(t.Context(), all, func(ctx context.Context, offers ...[]layout.Padding) ([]search.Answer, error) {
			if calls++; calls > 9 {
				return nil, context.DeadlineExceeded
			}
			return ask(ctx, offers...)
		})
		if err == nil || !test.fails(got) {
			t.Errorf("%s: interrupted: %v, %v", test.name, got, err)
		}
	}
}
