; A whole build that needs no image from anywhere: it starts from nothing, and brings its own tools.
; Run it from the top of the repository with `make example`.
((build tools
   ((from scratch)
    (comment "busybox, from this machine, is the only program")
    (copy (src busybox) (dst /bin/busybox))
    (shell /bin/busybox sh -c)
    (run (shell "busybox --install -s /bin"))))
 (from scratch)
 (copy (from (build tools)) (src /bin) (dst /bin))
 (shell /bin/sh -c)
 (env GREETING hello)
 (workdir /src)
 (copy (src hello.sh names) (dst ./))
 ; A cache mount outlives the build; a secret is there for one step, in memory only.
 (run (cache (downloads (target /var/cache/downloads)))
      (secrets (token (target /run/secrets/token)))
      (shell "wc -c < /run/secrets/token && date >> /var/cache/downloads/visits && wc -l < /var/cache/downloads/visits"))
 (user (uid 1000) (gid 1000))
 (run (shell "sh hello.sh names")))
