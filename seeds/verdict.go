package seeds

import "unlucky/qemu"

// Verdict is what the boots of a layout have shown, in a journal and in a saved seed.
type Verdict struct {
	Kind    qemu.Kind      `json:"kind" yaml:"kind"`                         // of a saved seed crash or hang; pass for a twin
	Title   string         `json:"title,omitempty" yaml:"title,omitempty"`   // of the first boot; printable ASCII
	Found   bool           `json:"found,omitempty" yaml:"-"`                 // the crash looked for
	Boots   int            `json:"boots,omitempty" yaml:"boots"`             // how often it was booted
	Crashes int            `json:"crashes,omitempty" yaml:"crashes"`         // how many of the boots did not pass
	Others  int            `json:"others,omitempty" yaml:"-"`                // of those, crashes that are not looked for; counted by minimize
	Titles  map[string]int `json:"titles,omitempty" yaml:"titles,omitempty"` // the faces met, and in how many boots
}
