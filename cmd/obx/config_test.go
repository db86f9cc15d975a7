package main

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// FuzzConfig holds that a configuration is read as it is written, that no field that obx does not know passes, and that an error says where it is.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{}`,
		`{"caches": ["registry.example/cache"], "trust": ["ci:AuDVsgrHQUmoxjhr2qfYkjLFB7xxhFBQa0oHPEOWwB8="], "mirrors": {"docker.io": ["mirror.example:5000/hub"]}, "plainHTTP": ["registry.lan:5000"]}`,
		"{\n  \"truts\": []\n}",
		"{\n  \"trust\": \"ci:x\"\n}",
		`{"trust": ["a"], "trust": []}`,
		`{"TRUST": ["a"]}`,
		`{"policy": "policy.json"}`,
		`{"file": "/etc/passwd"}`,
		`{"caches": null} {}`,
		`null`, `[]`, "{\n\n", "",
	} {
		f.Add([]byte(s))
	}
	place := regexp.MustCompile(`^name\.json(?::(\d+))?: `)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig("name.json", text)
		if err != nil {
			m := place.FindStringSubmatch(err.Error())
			if m == nil {
				t.Fatalf("it does not say where: %v", err)
			}
			if line, _ := strconv.Atoi(m[1]); m[1] != "" && (line < 1 || line > 1+strings.Count(string(text), "\n")) {
				t.Fatalf("line %d of %q", line, text)
			}
			return
		}
		if c.file != "name.json" {
			t.Fatalf("the file is %q", c.file)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(text, &fields); err != nil {
			t.Fatal(err)
		}
		for name := range fields {
			switch strings.ToLower(name) {
			case "caches", "trust", "mirrors", "plainhttp", "policy":
			default:
				t.Fatalf("the field %q passes", name)
			}
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig("name.json", b)
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%s is read as %+v, %v", b, again, err)
		}
	})
}
