package fuzz

import (
	"context"
	"errors"

	"unlucky/seeds"
)

// Suspicion is what the verdicts of sweeps say of the functions: whose residue
// goes with failing. No boot shows that a suspect is to blame: Minimize does.
type Suspicion struct {
	Layouts int `json:"layouts"`           // that have booted to a verdict and whose addresses are known
	Fails   int `json:"fails"`             // of them
	Omitted int `json:"omitted,omitempty"` // others that have booted: of strategy lld, or more than fit the memory
	// Suspects are in the order of the bugs that they explain, and for each bug
	// the best first.
	Suspects []Suspect `json:"suspects"`
	// TooFew says in words why failures, or all that the bugs before leave of
	// them, are explained by no function; empty where all are explained.
	TooFew string `json:"too_few,omitempty"`
	// Scores are -log10 of the chance of the best rule of each section of
	// Results.Layout, corrected as in Suspect; 0 where luck gives one as good.
	Scores []float64 `json:"-"`
}

// Suspect is a rule that tells failing layouts by the residue of a function.
type Suspect struct {
	// Bug is the number, from 1 on, of the failures that it explains. Those at
	// the residues of the first suspect of each bug are left out when the
	// next is looked for.
	Bug int `json:"bug"`
	// Functions are those that no layout tells apart, as they have always moved
	// by the same number of bytes. The order says nothing but that the first
	// are in the failures' traces.
	Functions []SuspectFunction `json:"functions"`
	// With are, where the rule is about a distance, the functions to which it
	// is: then Residues are those of the address of Functions[0] less that of
	// With[0].
	With     []SuspectFunction `json:"with,omitempty"`
	Modulus  uint64            `json:"modulus"`  // bytes: 64, 256 or 4096
	Residues []Span            `json:"residues"` // of the first function, where it fails
	// There are the layouts that have it at these residues, Elsewhere all others
	// that were compared: those with another title, too.
	There     Share `json:"there"`
	Elsewhere Share `json:"elsewhere"`
	// Chance is that of verdicts dealt at random to the same layouts giving any
	// function, modulus, residues and title a rule as good.
	Chance  float64        `json:"chance"`
	Titles  []string       `json:"titles"`  // of the failures explained, the most frequent first
	Layouts []seeds.Layout `json:"layouts"` // that fail there
}

// SuspectFunction is a function that a suspect may be.
type SuspectFunction struct {
	Name    string `json:"name"`
	Section string `json:"section"` // as in linker.Padding
	Address uint64 `json:"address"` // in the baseline
	Traced  bool   `json:"traced,omitempty"`
}

// Span are the residues from First to Last, in bytes, in steps of 16.
type Span struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Share is how many of some layouts fail.
type Share struct {
	Fails int `json:"fails"`
	Of    int `json:"of"`
}

// Sure is the largest chance with which a rule is taken for one.
const Sure = 0.05

// Suspects ranks the functions by how well their residues modulo 64, 256 and
// 4096 explain which layouts fail. progress may be nil.
func (r *Results) Suspects(ctx context.Context, progress func(done, total int)) (*Suspicion, error) {
	return nil, errors.New("not yet")
}
