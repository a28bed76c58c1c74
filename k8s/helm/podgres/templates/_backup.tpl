{{- define "podgres.backupLabels" -}}
{{ include "podgres.labels" . }}
app.kubernetes.io/component: backup
{{- end }}

{{/* A CronJob of one verb: root, verb, schedule. */}}
{{- define "podgres.backupJob" -}}
{{- $verb := .verb }}
{{- $schedule := .schedule }}
{{- with .root }}
{{- $name := include "podgres.name" . -}}
apiVersion: batch/{{ if include "podgres.before" (list . "1.21") }}v1beta1{{ else }}v1{{ end }}
kind: CronJob
metadata:
  name: {{ $name }}-{{ $verb }}
  labels: {{- include "podgres.backupLabels" . | nindent 4 }}
spec:
  schedule: {{ $schedule | quote }}
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 3
  jobTemplate:
    metadata:
      labels: {{- include "podgres.backupLabels" . | nindent 8 }}
    spec:
      backoffLimit: 3
      activeDeadlineSeconds: 21600
      ttlSecondsAfterFinished: 604800
      {{- if not (include "podgres.before" (list . "1.26")) }}
      # 64: settings are wrong. 65: refused, e.g. another run is at it, or a backup is damaged. 77: no permission. Trying again would not help.
      podFailurePolicy:
        rules:
          - action: Ignore
            onPodConditions: [{type: DisruptionTarget}]
          - action: FailJob
            onExitCodes: {containerName: {{ $verb }}, operator: In, values: [64, 65, 77]}
      {{- end }}
      template:
        metadata:
          labels: {app.kubernetes.io/name: podgres-backup, app.kubernetes.io/instance: {{ $name }}}
        spec:
          restartPolicy: Never
          automountServiceAccountToken: false
          {{- with .Values.imagePullSecrets }}
          imagePullSecrets: {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext: {{- include "podgres.podSecurity" . | nindent 12 }}
          {{- if not .Values.oneImage }}
          initContainers:
            - name: install
              image: {{ .Values.images.podgres }}
              args: [install, /podgres]
              securityContext: {{- include "podgres.restricted" . | nindent 16 }}
              volumeMounts:
                - {name: program, mountPath: /podgres}
          {{- end }}
          containers:
            - name: {{ $verb }}
              # PostgreSQL's own image, of the servers' version: pg_dump and the scratch server are in it.
              image: {{ .Values.images.postgres }}
              command: [{{ include "podgres.program" . }}, {{ $verb }}]
              # The servers' own: who logs in, where keys and credentials are.
              envFrom:
                - configMapRef: {name: {{ $name }}-settings}
              env:
                - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
                - {name: PODGRES_BACKUP_DESTINATION, value: {{ .Values.backup.s3.destination | default (printf "/backup/%s" $name) | quote }}}
                {{- if eq $verb "backup" }}
                - {name: PODGRES_BACKUP_KIND, value: {{ .Values.backup.kind }}}
                - {name: PODGRES_BACKUP_KEEP, value: {{ .Values.backup.keep | quote }}}
                # Any member tells who is there; the freshest standby is read.
                - {name: PODGRES_URL, value: "http://{{ $name }}:8008"}
                - {name: POSTGRES_PASSWORD_FILE, value: /etc/podgres/secret/password}
                # The servers' certificates have their names.
                - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
                {{- else }}
                - {name: PODGRES_SCRATCH_DIR, value: /tmp}
                {{- end }}
              securityContext: {{- include "podgres.restricted" . | nindent 16 }}
              resources:
                requests: {cpu: 100m, memory: 128Mi}
              volumeMounts:
                {{- if not .Values.oneImage }}
                - {name: program, mountPath: /podgres}
                {{- end }}
                {{- if include "podgres.toBucket" . }}
                - {name: backup, mountPath: /backup-s3, readOnly: true}
                {{- else }}
                - {name: backup, mountPath: /backup}
                {{- end }}
                - {name: secret, mountPath: /etc/podgres/secret, readOnly: true}
                - {name: tmp, mountPath: /tmp}
                {{- if eq $verb "backup" }}
                - {name: tls, mountPath: /etc/podgres/tls, readOnly: true}
                {{- end }}
          volumes:
            {{- if not .Values.oneImage }}
            - {name: program, emptyDir: {}}
            {{- end }}
            - {name: tmp, emptyDir: {}}
            {{- if include "podgres.toBucket" . }}
            - {name: backup, secret: {secretName: {{ include "podgres.s3Secret" . }}, defaultMode: 288}}
            {{- else }}
            - name: backup
              persistentVolumeClaim: {claimName: {{ $name }}-backup}
            {{- end }}
            - name: secret
              secret: {secretName: {{ include "podgres.secret" . }}, defaultMode: 288}
            {{- if eq $verb "backup" }}
            - name: tls
              secret: {secretName: {{ include "podgres.tlsSecret" . }}, defaultMode: 288, optional: true}
            {{- end }}
{{- end }}
{{- end }}
