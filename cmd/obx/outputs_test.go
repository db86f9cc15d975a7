package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor/build"
)

func TestParseOutput(t *testing.T) {
	dir := t.TempDir()
	file, bad := filepath.Join(dir, "config.json"), filepath.Join(dir, "bad.json")
	for name, text := range map[string]string{file: `{"Entrypoint":["/f"],"Labels":{"a":"1"},"ExposedPorts":{"80":{}}}`, bad: `{"entrypoints":["/f"]}`} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		in   string
		want build.OutputSpec
	}{
		{"type=tar,dest=out.tar", build.OutputSpec{Type: "tar", Dest: "out.tar"}},
		{"dest=-, type=tar", build.OutputSpec{Type: "tar", Dest: "-"}},
		{"type=docker,dest=x,name=host:5000/app:dev", build.OutputSpec{Type: "docker", Dest: "x", Names: []string{"host:5000/app:dev"}}},
		{`type=oci,"dest=a,b.tar"`, build.OutputSpec{Type: "oci", Dest: "a,b.tar"}},
		{"type=oci,dest=layout/", build.OutputSpec{Type: "oci", Dest: "layout/", Dir: true}},
		{"type=oci,dest=" + dir, build.OutputSpec{Type: "oci", Dest: dir, Dir: true}},
		{"type=local,dest=a=b", build.OutputSpec{Type: "local", Dest: "a=b"}},
		{"type=local,dest=d,setuid=keep", build.OutputSpec{Type: "local", Dest: "d", KeepSetuid: true}},
		{"type=registry,name=h/a:1,name=h/a", build.OutputSpec{Type: "registry", Names: []string{"h/a:1", "h/a"}}},
		{`type=oci,dest=x,entrypoint=["/a", "b,c"],cmd=d,cmd=e,"label=who=me, ""myself""",env=A=b=c,expose=80,expose=53/UDP`, build.OutputSpec{
			Type: "oci", Dest: "x", Image: build.ImageChange{Config: ocispec.ImageConfig{
				Entrypoint: []string{"/a", "b,c"}, Cmd: []string{"d", "e"}, Labels: map[string]string{"who": `me, "myself"`},
				Env: []string{"A=b=c"}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
			}}}},
		{`type=oci,dest=x,"entrypoint=[""a"",""b""]",cmd=[],user=1:2,workdir=/w,stop-signal=SIGINT`, build.OutputSpec{
			Type: "oci", Dest: "x", Image: build.ImageChange{Config: ocispec.ImageConfig{
				Entrypoint: []string{"a", "b"}, Cmd: []string{}, User: "1:2", WorkingDir: "/w", StopSignal: "SIGINT",
			}}}},
		{"type=oci,config=" + file + ",label=b=2,dest=x", build.OutputSpec{
			Type: "oci", Dest: "x", Image: build.ImageChange{Config: ocispec.ImageConfig{
				Entrypoint: []string{"/f"}, Labels: map[string]string{"a": "1", "b": "2"}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
			}}}},
	} {
		if got, err := parseOutput(test.in); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, %v", test.in, got, err)
		}
	}
	for _, in := range []string{"", "out.tar", "type=tar", "dest=x", "type=zip,dest=x", "type=tar,dest=x,level=3", `type=tar,"dest=x`, "type=tar,dest=x,name=n", "type=local,dest=-", "type=local,dest=d,setuid=drop", "type=tar,dest=d,setuid=keep",
		"type=registry,dest=x,name=h/a", "type=registry", "type=registry,name=a", "type=registry,name=h/a@sha256:" + strings.Repeat("0", 64), "type=registry,name=h/A",
		"type=oci,dest=x,name=scratch", "type=tar,dest=x,user=1", "type=oci,dest=x,env=A", "type=oci,dest=x,env==b", "type=oci,dest=x,label==b", "type=oci,dest=x,expose=0",
		"type=oci,dest=x,expose=80/icmp", "type=oci,dest=x,workdir=w", "type=oci,dest=x,stop-signal=TERM", "type=oci,dest=x,stop-signal=65", `type=oci,dest=x,cmd=["a"`,
		`type=oci,dest=x,cmd=["a"]b`, `type=oci,dest=x,cmd=[1]`, `type=oci,dest=x,user="a"`, "type=oci,dest=x,config=" + bad, "type=oci,dest=x,config=" + dir + "/none"} {
		if got, err := parseOutput(in); err == nil {
			t.Errorf("%q: got %+v and no error", in, got)
		}
	}
}
