{{/* The container of podgres: before Kubernetes 1.29 an ordinary one. */}}
{{- define "podgres.sidecar" -}}
- name: sidecar
  {{- if .Values.oneImage }}
  image: {{ .Values.images.postgres }}
  command: [podgres]
  {{- else }}
  image: {{ .Values.images.podgres }}
  {{- end }}
  args: [sidecar]
  {{- include "podgres.environment" . | nindent 2 }}
  ports:
    - {name: read-write, containerPort: 6432}
    - {name: read-only, containerPort: 6433}
    - {name: http, containerPort: 8008}
  # Never SQL in startup and liveness: postgres starts after the sidecar, and may be busy for long.
  startupProbe:
    httpGet: {path: /startup, port: http}
    periodSeconds: 1
    failureThreshold: 60
  livenessProbe:
    httpGet: {path: /liveness, port: http}
    periodSeconds: 10
    timeoutSeconds: 5
  readinessProbe:
    httpGet: {path: /readiness, port: http}
    periodSeconds: 2
    timeoutSeconds: 2
  securityContext: {{- include "podgres.restricted" . | nindent 4 }}
  resources: {{- toYaml .Values.resources.sidecar | nindent 4 }}
  volumeMounts:
    - {name: run, mountPath: /run/podgres}
    - {name: secret, mountPath: /etc/podgres/secret, readOnly: true}
    {{- include "podgres.tokenMount" . | indent 4 }}
    {{- include "podgres.tlsMount" . | indent 4 }}
{{- end }}
