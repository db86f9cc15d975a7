package main

import (
	"testing"

	"github.com/ocurrent/obx/executor/build"
)

func TestParseOutput(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		in   string
		want build.OutputSpec
	}{
		{"type=tar,dest=out.tar", build.OutputSpec{Type: "tar", Dest: "out.tar"}},
		{"dest=-, type=tar", build.OutputSpec{Type: "tar", Dest: "-"}},
		{"type=docker,dest=x,name=host:5000/app:dev", build.OutputSpec{Type: "docker", Dest: "x", Name: "host:5000/app:dev"}},
		{`type=oci,"dest=a,b.tar"`, build.OutputSpec{Type: "oci", Dest: "a,b.tar"}},
		{"type=oci,dest=layout/", build.OutputSpec{Type: "oci", Dest: "layout/", Dir: true}},
		{"type=oci,dest=" + dir, build.OutputSpec{Type: "oci", Dest: dir, Dir: true}},
		{"type=local,dest=a=b", build.OutputSpec{Type: "local", Dest: "a=b"}},
		{"type=local,dest=d,setuid=keep", build.OutputSpec{Type: "local", Dest: "d", KeepSetuid: true}},
	} {
		if got, err := parseOutput(test.in); err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v", test.in, got, err)
		}
	}
	for _, in := range []string{"", "out.tar", "type=tar", "dest=x", "type=zip,dest=x", "type=tar,dest=x,level=3", `type=tar,"dest=x`, "type=tar,dest=x,name=n", "type=local,dest=-", "type=local,dest=d,setuid=drop", "type=tar,dest=d,setuid=keep"} {
		if got, err := parseOutput(in); err == nil {
			t.Errorf("%q: got %+v and no error", in, got)
		}
	}
}
