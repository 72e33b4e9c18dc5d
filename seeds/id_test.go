package seeds

import (
	"encoding/json"
	"math"
	"slices"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestLayoutText(t *testing.T) {
	for text, want := range map[string]ID{
		"baseline":   Baseline,
		"0":          Seed(0),
		"7":          Seed(7),
		"4294967295": Seed(math.MaxUint32),
	} {
		got, err := ParseID(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParseLayout(%q) = %v, %v", text, got, err)
		}
		for name, codec := range map[string]struct {
			marshal   func(any) ([]byte, error)
			unmarshal func([]byte, any) error
		}{
			"yaml": {yaml.Marshal, yaml.Unmarshal},
			"json": {json.Marshal, json.Unmarshal},
		} {
			data, err := codec.marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			got := Seed(99)
			if err := codec.unmarshal(data, &got); err != nil || got != want {
				t.Errorf("%s of %s: %q reads back as %v, %v", name, text, data, got, err)
			}
		}
	}
	for _, text := range []string{"", "Baseline", "-1", "+1", "07", "4294967296", "0x7", "7 ", "1e3", "1_0"} {
		if l, err := ParseID(text); err == nil {
			t.Errorf("ParseLayout(%q) = %v, want an error", text, l)
		}
	}
}

func TestLayoutOrder(t *testing.T) {
	want := []ID{Baseline, Seed(0), Seed(1), Seed(10), Seed(math.MaxUint32)}
	got := []ID{want[3], want[0], want[4], want[1], want[2]}
	slices.SortFunc(got, ID.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %v, want %v", got, want)
	}
	if _, ok := Baseline.Seed(); ok {
		t.Error("the baseline has a seed")
	}
	if n, ok := Seed(0).Seed(); n != 0 || !ok {
		t.Error("seed 0 is not a seed")
	}
}
