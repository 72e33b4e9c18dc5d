package seeds

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"unlucky/layout"
	"unlucky/yamltext"
)

// Minimized is what minimizing a failing layout has shown. The plan beside it
// in the File is the smallest one found that still fails.
type Minimized struct {
	// Complete is false where a limit of boots or of time ended it.
	Complete bool           `yaml:"complete" json:"complete"`
	Boots    int            `yaml:"boots" json:"boots"`                         // of all questions
	Failing  Boots          `yaml:"failing" json:"failing"`                     // of the layouts that fail: the rate of the failure
	Needed   int            `yaml:"needed" json:"needed"`                       // boots that the weakest pass of a layout stands on
	Passing  string         `yaml:"passing,omitempty" json:"passing,omitempty"` // the layout that it was compared with: "the baseline"
	Match    string         `yaml:"match,omitempty" json:"match,omitempty"`
	Faces    map[string]int `yaml:"faces" json:"faces"` // titles met on the way, and in how many boots
	// Culprits are the functions whose addresses decide; each of them makes
	// a layout fail. Empty where no few functions do.
	Culprits []Culprit `yaml:"culprits,omitempty" json:"culprits"`
	// Autopsy is what the memory of the failing layout has told of its code; nil where
	// it was not looked into.
	Autopsy *Autopsy `yaml:"autopsy,omitempty" json:"autopsy,omitempty"`
	// Switches of the kernel command line, each tried alone on the failing
	// image.
	Switches []Switch `yaml:"switches,omitempty" json:"switches"`
	// Twin is the nearest plan that passes, if one is known.
	Twin  *layout.Plan `yaml:"twin,omitempty" json:"twin,omitempty"`
	Notes []string     `yaml:"notes,omitempty" json:"notes"` // what else a reader should know
}

// Boots is how often something was booted and how often it crashed as looked
// for, and otherwise.
type Boots struct {
	Boots   int `yaml:"boots" json:"boots"`
	Crashes int `yaml:"crashes" json:"crashes"`
	Others  int `yaml:"others,omitempty" json:"others,omitempty"`
}

// Verdict is "fails", "passes" or "unknown".
func (b Boots) Verdict() string {
	switch {
	case b.Crashes > 0:
		return "fails"
	case b.Others > 0 || b.Boots == 0:
		return "unknown"
	}
	return "passes"
}

// Culprit is a smallest set of functions whose addresses decide.
type Culprit struct {
	Functions []Function `yaml:"functions" json:"functions"` // in the order of .text
	// Modulus is the smallest power of two, in bytes, that explains every
	// boot; 0 where it is not known, or where no residue passes.
	Modulus uint64 `yaml:"modulus,omitempty" json:"modulus"`
	// Step is by what the functions can be moved, in bytes: what is between two residues
	// of a whole table. 0, as in files that do not have it, is 16.
	Step uint64 `yaml:"step,omitempty" json:"step,omitempty"`
	// Together tells that the functions may move together: only where they
	// are to each other decides.
	Together bool `yaml:"together,omitempty" json:"together,omitempty"`
	// Distance tells that the functions may move together with all that stands
	// behind them: only how far away what the linker script places there is decides.
	Distance bool `yaml:"distance,omitempty" json:"distance,omitempty"`
	// Bounded tells that of the residues of the modulus only some are in the table: those
	// of the powers of two, and the borders of the range in which it fails.
	Bounded bool `yaml:"bounded,omitempty" json:"bounded,omitempty"`
	// Sampled tells that the table has some residues of the modulus only.
	Sampled bool `yaml:"sampled,omitempty" json:"sampled,omitempty"`
	// Bound, where it is set, is what decides: no residue, but how far apart the two
	// functions are, or, of one, its address.
	Bound *Bound `yaml:"bound,omitempty" json:"bound,omitempty"`
	Alone Boots  `yaml:"alone" json:"alone"` // boots with all others as in the passing layout
	// Elsewhere are boots with all others as in another passing layout.
	Elsewhere Boots `yaml:"elsewhere,omitempty" json:"elsewhere"`
	// Residues is the table of the rule: functions moved alone, all others
	// fixed.
	Residues []Residue `yaml:"residues" json:"residues"`
}

// Bound is a limit of a distance, from the one function to the other, or of an address.
type Bound struct {
	Bytes  uint64 `yaml:"bytes" json:"bytes"`                       // where it still fails
	Step   uint64 `yaml:"step" json:"step"`                         // bytes beyond, where it passes
	Nearer bool   `yaml:"nearer,omitempty" json:"nearer,omitempty"` // it fails up to here, and else from here on
}

// SetModulus gives the table its modulus and adds up the lines that are one.
func (c *Culprit) SetModulus(modulus uint64) {
	var table []Residue
	for _, r := range c.Residues {
		r.Bytes %= modulus
		i := slices.IndexFunc(table, func(t Residue) bool { return t.Bytes == r.Bytes })
		if i < 0 {
			table = append(table, r)
			continue
		}
		t := &table[i].Boots
		t.Boots, t.Crashes, t.Others = t.Boots+r.Boots.Boots, t.Crashes+r.Crashes, t.Others+r.Others
	}
	slices.SortFunc(table, func(a, b Residue) int { return cmp.Compare(a.Bytes, b.Bytes) })
	c.Residues = table
	if _, ok := c.Cure(); ok {
		c.Modulus = modulus
	}
}

// Function is one of a culprit.
type Function struct {
	Name    string `yaml:"name" json:"name"`
	Section string `yaml:"section" json:"section"` // as in linker.Padding
	Address uint64 `yaml:"address" json:"address"` // where it fails
	// Touching tells that it must touch the function before it.
	Touching bool `yaml:"touching,omitempty" json:"touching,omitempty"`
	// Moved tells that the table moves it.
	Moved bool `yaml:"moved,omitempty" json:"moved,omitempty"`
}

// MarshalYAML writes the address in hex.
func (f Function) MarshalYAML() (any, error) {
	type plain Function
	return inHex(plain(f), "address", f.Address)
}

// inHex is a mapping with the value of one key in hex.
func inHex(v any, key string, value uint64) (*yaml.Node, error) {
	n, err := yamltext.Node(v)
	if err != nil {
		return nil, err
	}
	for i, k := range n.Content {
		if k.Value == key {
			n.Content[i+1].Value = fmt.Sprintf("%#x", value)
			break
		}
	}
	return n, nil
}

// Residue is one line of a culprit's table.
type Residue struct {
	Bytes uint64 `yaml:"bytes" json:"bytes"` // moved by, from where it fails
	Boots `yaml:",inline"`
}

// MarshalYAML writes a line of the table as one line.
func (r Residue) MarshalYAML() (any, error) {
	type plain Residue
	return oneLine(plain(r))
}

// Switch is an addition to the kernel command line.
type Switch struct {
	Append string `yaml:"append" json:"append"`
	Boots  `yaml:",inline"`
}

// MarshalYAML writes a switch as one line.
func (s Switch) MarshalYAML() (any, error) {
	type plain Switch
	return oneLine(plain(s))
}

func oneLine(v any) (any, error) {
	n, err := yamltext.Node(v)
	if err != nil {
		return nil, err
	}
	n.Style = yaml.FlowStyle
	return n, nil
}

// String says in a sentence what the culprit is: "crashes when `f` is at 0x30
// mod 0x100; moved alone by 16 bytes it passes".
func (c Culprit) String() string {
	if c.Bound != nil {
		return c.bounded()
	}
	var text strings.Builder
	cure, ruled := c.Cure()
	ruled = ruled && c.Modulus > 0
	for i, f := range c.Functions {
		switch {
		case f.Touching && i > 0:
			text.WriteString(" is directly followed by ")
		case i > 0:
			text.WriteString(" and ")
		}
		fmt.Fprintf(&text, "`%s`", f.Name)
		if ruled && !c.Together && !c.Sampled && len(c.Functions) > 1 {
			fmt.Fprintf(&text, " at %s", c.residues(f))
		}
	}
	touching := slices.ContainsFunc(c.Functions, func(f Function) bool { return f.Touching })
	fixed := slices.ContainsFunc(c.Functions, func(f Function) bool { return !f.Moved })
	of := "by the address"
	if c.Distance {
		of = "by the distance to what the linker script places behind all functions,"
	}
	switch {
	case c.Sampled && touching:
		return fmt.Sprintf("crashes when %s, %s mod %#x; moved by %d bytes they pass", &text, of, c.Modulus, cure)
	case c.Sampled:
		return fmt.Sprintf("crashes by %s of %s mod %#x; moved by %d bytes it passes", strings.TrimPrefix(of, "by "), &text, c.Modulus, cure)
	case !ruled && touching:
		return fmt.Sprintf("crashes when %s", &text)
	case !ruled && len(c.Residues) > 1:
		return fmt.Sprintf("crashes wherever %s is, if held apart from its neighbours", &text)
	case !ruled:
		return fmt.Sprintf("crashes by the address of %s", &text)
	case len(c.Functions) == 1:
		return fmt.Sprintf("crashes when %s is at %s mod %#x; moved alone by %d bytes it passes", &text, c.residues(c.Functions[0]), c.Modulus, cure)
	case c.Together && len(c.Functions) == 2:
		return fmt.Sprintf("crashes when %s are %s mod %#x; %d bytes nearer they pass", &text, c.distances(), c.Modulus, cure)
	case c.Together:
		return fmt.Sprintf("crashes when %s are at these distances mod %#x; the first moved by %d bytes it passes", &text, c.Modulus, cure)
	case fixed:
		return fmt.Sprintf("crashes when %s mod %#x; `%s` moved alone by %d bytes it passes", &text, c.Modulus, c.Functions[0].Name, cure)
	}
	return fmt.Sprintf("crashes when %s mod %#x; moved by %d bytes they pass", &text, c.Modulus, cure)
}

// bounded is String of a distance, or an address, that has a bound.
func (c Culprit) bounded() string {
	b, last := c.Bound, c.Functions[len(c.Functions)-1].Name
	switch {
	case len(c.Functions) == 1 && b.Nearer:
		return fmt.Sprintf("crashes when `%s` is at %#x or below; %d bytes above that it passes", last, b.Bytes, b.Step)
	case len(c.Functions) == 1:
		return fmt.Sprintf("crashes when `%s` is at %#x or above; %d bytes below that it passes", last, b.Bytes, b.Step)
	case b.Nearer:
		return fmt.Sprintf("crashes when `%s` is %#x bytes or less behind `%s`; %d bytes further apart they pass", last, b.Bytes, c.Functions[0].Name, b.Step)
	}
	return fmt.Sprintf("crashes when `%s` is %#x bytes or more behind `%s`; %d bytes nearer they pass", last, b.Bytes, c.Functions[0].Name, b.Step)
}

// distances lists how far apart two functions fail, of which the table moves
// the first.
func (c Culprit) distances() string {
	var out []string
	for _, r := range c.Residues {
		if r.Verdict() != "fails" {
			continue
		}
		if d := (c.Functions[1].Address - c.Functions[0].Address - r.Bytes) % c.Modulus; d != 0 {
			out = append(out, fmt.Sprintf("%#x bytes apart", d))
		} else {
			out = append(out, "at the same residue")
		}
	}
	return strings.Join(out, " or ")
}

// Cure is the least that the culprit must be moved by to pass.
func (c Culprit) Cure() (bytes uint64, ok bool) {
	for _, r := range c.Residues {
		if r.Verdict() == "passes" && (!ok || r.Bytes < bytes) {
			bytes, ok = r.Bytes, true
		}
	}
	return bytes, ok
}

// passesWithin tells whether a function was booted at one of the residues behind one,
// up to so many bytes, without failing there.
func (c Culprit) passesWithin(f Function, residue, bytes uint64) bool {
	return slices.ContainsFunc(c.Residues, func(r Residue) bool {
		behind := (f.Address + r.Bytes - residue) % c.Modulus
		return 0 < behind && behind < bytes && r.Verdict() != "fails"
	})
}

// residues lists where a function fails, neighbouring ones as a range.
func (c Culprit) residues(f Function) string {
	if !f.Moved {
		return fmt.Sprintf("%#x", f.Address%c.Modulus)
	}
	var at []uint64
	for _, r := range c.Residues {
		if r.Verdict() == "fails" {
			at = append(at, (f.Address+r.Bytes)%c.Modulus)
		}
	}
	slices.Sort(at)
	at = slices.Compact(at)
	step := cmp.Or(c.Step, layout.Step)
	if last := at[len(at)-1]; c.Bounded && !c.passesWithin(f, last, at[0]+c.Modulus-last) { // over the end
		at = slices.Compact(append(append([]uint64{0}, at...), c.Modulus-step))
	}
	var out []string
	for i := 0; i < len(at); i++ {
		first := i
		for i+1 < len(at) && (at[i+1] == at[i]+step || c.Bounded && !c.passesWithin(f, at[i], at[i+1]-at[i])) {
			i++
		}
		if i > first+1 {
			out = append(out, fmt.Sprintf("%#x to %#x", at[first], at[i]))
			continue
		}
		for _, a := range at[first : i+1] {
			out = append(out, fmt.Sprintf("%#x", a))
		}
	}
	return strings.Join(out, " or ")
}
